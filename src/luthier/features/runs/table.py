"""The view model of the list of runs: its columns, its order, and the addresses that change one of them.

All of its state is in the address: filter, order, columns, whether archived runs are shown, and the place in the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.features.runs.entries_store import STATUSES, EntryStatus
from luthier.features.runs.filter_language import Filter, names_in, parse_filter
from luthier.features.runs.filter_query import ALIASES, PLAN_FIELDS, RESULT_FIELDS, Order, is_value, key_of
from luthier.features.runs.labels import view_query
from luthier.features.runs.state import EvaluationCache, RunPage, RunRow, page_of_runs
from luthier.ml.charts import figures
from luthier.platform.db.run_values import METRIC, Value
from luthier.platform.home.context import Context
from luthier.platform.ui.render import usd

MAX_COLUMNS: Final = 24
DEFAULT_COLUMNS: Final = ("state", "loss", "verdict", "dataset", "spent", "created")
OWN_COLUMNS: Final = {
    "state": "Status",
    "loss": "Loss",
    "verdict": "Verdict",
    "dataset": "Rows",
    "spent": "Spent",
    "created": "Made",
    "tags": "Tags",
    "group": "Group",
    "note": "Note",
    "model": "Base model",
    "method": "Method",
}
"""Columns that are more than one value, and their heads."""
OFFERED: Final = (
    "training.learning_rate", "training.epochs", "training.global_batch_size", "method.rank", "training.num_steps",
    "data.train_rows", "train_loss", "validation_loss", "tokens_per_second", "seconds_per_step", "memory_bytes",
    "trainable_parameters", "hours", "usd",
)  # fmt: skip
"""Values that the choice of columns shows first."""
_TITLES: Final = {
    "data.train_rows": "Training rows",
    "train_loss": "Mean training loss",
    "validation_loss": "Validation loss",
    "tokens_per_second": "Tokens a second",
    "seconds_per_step": "Time a step",
    "memory_bytes": "Peak memory",
    "usd": "Money",
    "energy_kwh": "Energy in kWh",
}
_SORT_KEYS: Final = {"loss": "train_loss", "spent": "hours"}
_UNSORTED: Final = ("tags", "note")
_SHOWN: Final[dict[str, Callable[[float], str]]] = {
    "memory_bytes": lambda value: figures.size(int(value)),
    "seconds": figures.duration,
    "seconds_per_step": figures.duration,
    "hours": lambda value: figures.duration(3600 * value),
    "usd": usd,
    "tokens": figures.short_count,
    "trainable_parameters": figures.short_count,
    "tokens_per_second": figures.speed,
}


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a column.

    Attributes:
        key: The column.
        title: Its words.
        address: The list sorted by it, in the other direction where it is sorted by it already; empty: it cannot be.
        sorted: `ascending` or `descending` where the list is sorted by it; else empty.
        is_number: Whether it is set to the right.
    """

    key: str
    title: str
    address: str
    sorted: str
    is_number: bool


@dataclass(frozen=True, slots=True)
class TableRequest:
    """What the address of the list asks for.

    Attributes:
        filter: The text of the filter.
        status: Only runs in this state; from links of earlier versions and of other pages.
        text: Words to search for, likewise.
        sort: A field, with `-` in front for the largest first.
        columns: Their keys.
        archived: Whether archived runs are shown.
        before: The run behind which the page begins.
    """

    filter: str = ""
    status: EntryStatus | None = None
    text: str = ""
    sort: str = ""
    columns: tuple[str, ...] = DEFAULT_COLUMNS
    archived: bool = False
    before: str = ""

    @property
    def order(self) -> Order:
        """The order.

        Raises:
            RequestError: It names nothing.
        """
        name = self.sort.strip().removeprefix("-")
        key = _SORT_KEYS.get(name)
        return Order.parse(self.sort) if key is None else Order(key, self.sort.strip().startswith("-"))

    @property
    def is_filtered(self) -> bool:
        """Whether some runs may be left out, apart from archived ones."""
        return bool(self.filter or self.status or self.text)

    @property
    def query(self) -> str:
        """As the parameters of an address, without the place in the list."""
        return view_query(
            {
                "filter": self.filter,
                "status": self.status or "",
                "text": self.text,
                "sort": self.sort,
                "columns": "" if self.columns == DEFAULT_COLUMNS else ",".join(self.columns),
                "archived": "1" if self.archived else "",
            }
        )

    def address(self, before: str = "") -> str:
        """The address of the list, from a run on."""
        parts = [self.query] if self.query else []
        if before:
            parts.append(urlencode({"before": before}))
        return "/runs" + (f"?{'&'.join(parts)}" if parts else "")

    def sorted_by(self, sort: str) -> TableRequest:
        """The same in another order, from its beginning."""
        return replace(self, sort=sort, before="")


def asked_for(
    *, filter_text: str, status: str, text: str, sort: str, columns: Sequence[str], archived: str, before: str
) -> TableRequest:
    """What the parameters of an address ask for; columns that are named twice are there once.

    Args:
        filter_text: The filter, in the language of filters.
        status: One of `STATUSES`; any other text for all.
        text: Words to search for.
        sort: A field, with `-` in front for the largest first; empty for the newest first.
        columns: Keys of columns, each entry with one or several by commas; unknown ones are ignored.
        archived: `1`, `on` or `yes` shows archived runs, too.
        before: The run behind which the page begins.
    """
    keys = [key for one in columns for part in one.split(",") if (key := _column_key(part.strip()))]
    known = tuple(dict.fromkeys(keys))[:MAX_COLUMNS] or DEFAULT_COLUMNS
    state: EntryStatus | None = next((one for one in STATUSES if one == status), None)
    return TableRequest(
        filter_text.strip(), state, text.strip(), sort.strip(), known, archived in ("1", "on", "yes"), before
    )


def _column_key(name: str) -> str:
    if not name or name in OWN_COLUMNS:
        return name
    key = key_of(name)
    return key if is_value(key) else key if key in OWN_COLUMNS else ""


@dataclass(frozen=True, slots=True)
class Table:
    """A page of the list. error: why the filter or the order could not be followed; then there are no rows."""

    request: TableRequest
    page: RunPage
    heads: Sequence[Head]
    error: RequestError | None = None


def table_of(context: Context, caller: Caller, judged: EvaluationCache, asked: TableRequest) -> Table:
    """The rows that an address asks for, with the heads of their columns."""
    try:
        tree, order = parse_filter(asked.filter), asked.order
        hides = hides_archived(asked, tree)
        page = page_of_runs(
            context, caller, judged, before=asked.before or None, status=asked.status, text=asked.text, tree=tree,
            order=order, columns=[key for key in asked.columns if key not in OWN_COLUMNS], hides_archived=hides,
        )  # fmt: skip
    except RequestError as error:
        return Table(asked, RunPage([], None), heads_of(asked, Order()), error)
    return Table(asked, page, heads_of(asked, order))


def hides_archived(asked: TableRequest, tree: Filter | None) -> bool:
    """Archived runs are hidden, unless they are asked for by the filter or by the address."""
    return not asked.archived and "archived" not in names_in(tree)


def heads_of(asked: TableRequest, order: Order) -> list[Head]:
    """The heads of the columns, each with the address that sorts by it."""
    heads = []
    for key in ("name", *asked.columns):
        sort_key = _SORT_KEYS.get(key, key)
        is_sorted = order.key == sort_key
        # The first click shows the largest or newest first, names from A on.
        first, second = (key, f"-{key}") if key in ("name", "model", "method", "group") else (f"-{key}", key)
        is_first = is_sorted and order.is_descending == first.startswith("-")
        address = "" if key in _UNSORTED else asked.sorted_by(second if is_first else first).address()
        direction = ("descending" if order.is_descending else "ascending") if is_sorted else ""
        heads.append(Head(key, title_of(key), address, direction, _is_number(key)))
    return heads


def title_of(key: str) -> str:
    """The head of a column."""
    if key == "name":
        return "Run"
    if key in OWN_COLUMNS:
        return OWN_COLUMNS[key]
    if key in _TITLES:
        return _TITLES[key]
    words = (key.removeprefix(METRIC) if key.startswith(METRIC) else key.rpartition(".")[2]).replace("_", " ")
    return words[:1].upper() + words[1:]


def _is_number(key: str) -> bool:
    return key in ("loss", "spent") or (key not in OWN_COLUMNS and key != "name")


def shown_value(key: str, value: Value | None) -> str:
    """A value of a cell as text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return {"true": "yes", "false": "no"}.get(value, value)
    return _SHOWN.get(key, _plain_number)(value)


def _plain_number(value: float) -> str:
    return (
        figures.count(int(value)) if value.is_integer() and abs(value) < 1e15 else figures.plain(float(f"{value:.4g}"))
    )


def cells_of(row: RunRow, keys: Sequence[str]) -> dict[str, str]:
    """The plain values of a row as text, by column."""
    return {key: shown_value(key, row.values.get(key)) for key in keys if key not in OWN_COLUMNS}


def offered_columns(context: Context, chosen: Sequence[str]) -> list[tuple[str, str]]:
    """Columns to choose from by a click, as key and title; those that are chosen are among them."""
    metrics = [key for key in context.run_entries.keys() if key.startswith(METRIC)]  # noqa: SIM118 - a method of a store
    keys = dict.fromkeys([*OWN_COLUMNS, *OFFERED, *metrics, *chosen])
    return [(key, title_of(key)) for key in keys]


def known_fields() -> list[str]:
    """Names that a filter, an order or a column may have, for lists of suggestions."""
    return sorted({*ALIASES, *RESULT_FIELDS, *PLAN_FIELDS, *OWN_COLUMNS})
