"""Personal data: what the recognisers take for it where there is none, and how much of it they find where it is.

    python benchmarks/personal_data.py [--num-rows 20000] [--num-planted 1000] [--seed 0] [--packages numpy] [--json]

For each profile (`precision`, as a repair masks by default; `recall`, as traffic is masked):
    untouched   share of the rows of a set without personal data that the default kinds leave, and rows changed by kind
    recall      share of planted values found whole, with a word beside them that says what they are, and bare
    precision   of all that is found of a kind, in planted rows of all kinds and in the sets without, what is right

--packages adds sets of the docstrings of installed packages, which no recogniser was tried on while it was written.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personal_data_rows import PLANTED_KINDS, clean_sets, package_docs, planted_rows

from luthier.ml.data.personal_data.find import find_personal_data, name_finder, why_not
from luthier.ml.data.personal_data.masking import DEFAULT_KINDS, MaskedKinds
from luthier.ml.data.personal_data.recognizers import KINDS

PROFILES = {
    "precision": MaskedKinds(KINDS, "precision"),
    "recall": MaskedKinds(KINDS, "recall"),
}


@dataclass(frozen=True, slots=True)
class CleanResult:
    """A set without personal data: how many rows it has, and how many of them are changed, by kind and by default."""

    num_rows: int
    by_kind: Counter[str]
    num_changed_by_default: int

    @property
    def untouched(self) -> float:
        """Share of the rows that the default kinds leave as they are."""
        return 1 - self.num_changed_by_default / self.num_rows


@dataclass(frozen=True, slots=True)
class PlantedResult:
    """Rows with a planted value each: of how many it is found whole, and what else is found, by kind."""

    num_rows: int
    num_found: int
    false: Counter[str]

    @property
    def recall(self) -> float:
        """Share of the values that are found."""
        return self.num_found / self.num_rows


def measure_clean(rows: Sequence[str], masked: MaskedKinds) -> CleanResult:
    """How many rows of a set without personal data hold something that would be masked."""
    by_kind: Counter[str] = Counter()
    num_changed = 0
    for row in rows:
        kinds = {span.kind for span in find_personal_data(row, profile=masked.profile)}
        by_kind.update(kinds)
        num_changed += bool(kinds & set(DEFAULT_KINDS))
    return CleanResult(len(rows), by_kind, num_changed)


def measure_planted(kind: str, num_rows: int, seed: int, masked: MaskedKinds, *, is_bare: bool) -> PlantedResult:
    """How many of the planted values of a kind are found whole."""
    find_names = name_finder() if kind == "name" else None
    num_found, false = 0, Counter[str]()
    for row, value in planted_rows(kind, num_rows, seed, is_bare=is_bare):
        start = row.index(value)
        spans = find_personal_data(row, find_names, profile=masked.profile)
        is_found = any(s.kind == kind and s.start <= start and s.end >= start + len(value) for s in spans)
        num_found += is_found
        # Part of a value is no false alarm of its kind: it is a value that was not found whole.
        false.update(s.kind for s in spans if s.kind != kind or s.end <= start or s.start >= start + len(value))
    return PlantedResult(num_rows, num_found, false)


def measure(sets: Mapping[str, Sequence[str]], num_planted: int, seed: int, masked: MaskedKinds) -> dict[str, Any]:
    """All figures of a profile as a plain document."""
    clean = {name: measure_clean(rows, masked) for name, rows in sets.items()}
    kinds = [kind for kind in PLANTED_KINDS if kind != "name" or name_finder() is not None]
    said = {kind: measure_planted(kind, num_planted, seed, masked, is_bare=False) for kind in kinds}
    bare = {kind: measure_planted(kind, num_planted, seed, masked, is_bare=True) for kind in kinds}
    num_rows = sum(one.num_rows for one in clean.values())
    num_changed = sum(one.num_changed_by_default for one in clean.values())
    by_kind = {}
    for kind in kinds:
        num_true = said[kind].num_found + bare[kind].num_found
        num_false = sum(one.false[kind] for one in (*said.values(), *bare.values()))
        num_clean = sum(one.by_kind[kind] for one in clean.values())
        by_kind[kind] = {
            "is_default": kind in DEFAULT_KINDS,
            "clean_rows_changed": num_clean,
            "clean_rows_untouched": 1 - num_clean / num_rows,
            "worst_set": min(clean, key=lambda name: -clean[name].by_kind[kind] / clean[name].num_rows),
            "worst_set_untouched": 1 - max(one.by_kind[kind] / one.num_rows for one in clean.values()),
            "recall_said": said[kind].recall,
            "recall_bare": bare[kind].recall,
            "precision": num_true / max(1, num_true + num_false + num_clean),
        }
    return {
        "num_rows": num_rows,
        "num_changed_by_default": num_changed,
        "untouched_by_default": 1 - num_changed / num_rows,
        "sets": {
            name: {
                "num_rows": one.num_rows,
                "untouched_by_default": one.untouched,
                "changed_by_kind": dict(one.by_kind),
            }
            for name, one in clean.items()
        },
        "kinds": by_kind,
    }


def main() -> None:
    """Measure both profiles and print two tables each, or one JSON document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--num-rows", type=int, default=20_000, help="rows without personal data, over all sets")
    cli.add_argument("--num-planted", type=int, default=1_000, help="rows a kind, with words and bare")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--packages", default="", help="names of installed packages, with commas between")
    cli.add_argument("--json", action="store_true")
    args = cli.parse_args()
    sets: dict[str, Sequence[str]] = dict(clean_sets(args.num_rows, args.seed))
    for package in filter(None, args.packages.split(",")):
        sets[f"docs of {package}"] = package_docs(package)
    document = {name: measure(sets, args.num_planted, args.seed, masked) for name, masked in PROFILES.items()}
    if args.json:
        print(json.dumps(document, indent=1))
        return
    for profile, found in document.items():
        _print_tables(profile, found)
    if (reason := why_not()) is not None:
        print(f"names are not measured: {reason}")


def _print_tables(profile: str, found: dict[str, Any]) -> None:
    share, num_rows = found["untouched_by_default"], found["num_rows"]
    print(f"profile {profile}: {share:.4f} of {num_rows:,} rows without personal data left as they are by default")
    print(f"{'set':<24}{'rows':>8}{'untouched':>11}  rows changed, by kind")
    for name, one in found["sets"].items():
        kinds = ", ".join(f"{kind} {num:,}" for kind, num in sorted(one["changed_by_kind"].items())) or "none"
        print(f"{name:<24}{one['num_rows']:>8,}{one['untouched_by_default']:>11.4f}  {kinds}")
    heads = ("default", "false rows", "untouched", "worst set", "recall", "bare", "precision")
    widths = (8, 11, 10, 10, 8, 7, 10)
    print(f"{'kind':<12}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    for kind, one in found["kinds"].items():
        print(
            f"{kind:<12}{'yes' if one['is_default'] else 'no':>8}{one['clean_rows_changed']:>11,}"
            f"{one['clean_rows_untouched']:>10.4f}{one['worst_set_untouched']:>10.4f}{one['recall_said']:>8.3f}"
            f"{one['recall_bare']:>7.3f}{one['precision']:>10.4f}"
        )
    print()


if __name__ == "__main__":
    main()
