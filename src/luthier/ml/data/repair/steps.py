"""What is done to the strings of one row: cleaning, then secrets, then personal data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from luthier.core.errors import RowProblem
from luthier.ml.data.personal_data.find import name_finder
from luthier.ml.data.personal_data.masking import MaskedKinds, OnMasked, Pseudonyms, mask_personal_data, mask_secrets
from luthier.ml.data.repair.masked_values import MaskedValues
from luthier.ml.data.repair.request import RepairRequest
from luthier.ml.data.repair.row_strings import change_row, numbers_as_text
from luthier.ml.data.text.clean_text import HTML_STRIPPED, clean_text

HTML_KEPT: Final = ("encoding", "HTML kept")
_MAX_KEYS: Final = 10_000


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What is done to rows.

    Attributes:
        names: of "secret" and "personal_data" those that are masked, in this order.
        mask: which personal data.
        mapping: field of the shape -> column.
        has_schema: numbers become text where text is expected.
        html_is_meant: most rows hold HTML, so it is kept.
    """

    names: tuple[str, ...]
    mask: MaskedKinds
    mapping: Mapping[str, str]
    has_schema: bool
    html_is_meant: bool

    @classmethod
    def of(cls, request: RepairRequest, *, html_is_meant: bool) -> StepOptions:
        """Those of a request."""
        names = tuple(name for name in ("secret", "personal_data") if request.has(name))
        return cls(names, request.mask, request.mapping, request.has("schema"), html_is_meant)

    @property
    def finds_names(self) -> bool:
        """Whether names of people are masked, which a language model has to find."""
        return "personal_data" in self.names and "name" in self.mask.kinds


class Steps:
    """Cleaning, then secrets, then personal data; one set of pseudonyms for the whole file."""

    def __init__(self, options: StepOptions, masked: MaskedValues) -> None:
        self.options, self.masked = options, masked
        self._pseudonyms = Pseudonyms(name_finder() if options.finds_names else None)
        self.lacks_names = options.finds_names and self._pseudonyms.find_names is None
        kinds = tuple(kind for kind in options.mask.kinds if kind != "name")
        self._mask_of_fields = replace(options.mask, kinds=kinds)
        # Nearly all rows have the same keys, so each is searched once.
        self._plain_keys: set[str] = set()
        masked.find_names = self._pseudonyms.find_names

    def readable(self, fields: Mapping[str, Any], was: RowProblem | None) -> Mapping[str, Any]:
        """The row with numbers as text in the fields that hold text, where that is what is wrong with it."""
        if was is None or was.kind != "schema" or not self.options.has_schema:
            return fields
        return numbers_as_text(fields, was.field, self.options.mapping)

    def apply(self, fields: Mapping[str, Any], *, to_clean: bool) -> tuple[dict[str, Any], Counter[Any]]:
        """The row changed, and a count of (action, what was done)."""
        if not to_clean and not self.options.names:
            return dict(fields), Counter()
        return change_row(fields, self._cleaned_and_masked if to_clean else self._masked, self._masked_key)

    def _cleaned_and_masked(self, text: str) -> tuple[str, Counter[Any]]:
        cleaned, what = clean_text(text)
        if self.options.html_is_meant and HTML_STRIPPED in what:
            masked, done = self._masked(text)
            return masked, done + Counter({HTML_KEPT: 1})
        # Cleaned first: damaged or marked-up text hides addresses and numbers from the finders.
        masked, done = self._masked(cleaned)
        return masked, done + Counter({("encoding", one): 1 for one in what})

    def _masked(self, text: str, mask: MaskedKinds | None = None) -> tuple[str, Counter[Any]]:
        done: Counter[Any] = Counter()
        for action in self.options.names:
            text, counts = self._mask(action, text, mask or self.options.mask)
            done.update({(action, kind): num for kind, num in counts.items()})
        return text, done

    def _masked_key(self, key: str) -> tuple[str, Counter[Any]]:
        if key in self._plain_keys:
            return key, Counter()
        # A word alone is rather the name of a field, such as `Parker`, than that of a person.
        masked, done = self._masked(key, self.options.mask if " " in key else self._mask_of_fields)
        if masked == key and len(self._plain_keys) < _MAX_KEYS:
            self._plain_keys.add(key)
        return masked, done

    def _mask(self, action: str, text: str, mask: MaskedKinds) -> tuple[str, dict[str, int]]:
        on_masked: OnMasked = partial(self.masked.see, action)
        if action == "secret":
            return mask_secrets(text, self._pseudonyms, on_masked)
        return mask_personal_data(text, self._pseudonyms, mask, on_masked)
