"""The models of `luthier serve` with the weights that their files have now.

A server of a home finds a model for each request. `luthier serve` has chosen its models before it starts, and may run
for weeks: a folder or a GGUF file that is written again meanwhile is another model, which has to be loaded again.
"""

from __future__ import annotations

import logging
from collections.abc import ItemsView, Iterator, Mapping
from pathlib import Path

from luthier.core.errors import ConflictError, ModelSourceError
from luthier.core.stream import Served
from luthier.features.serving.engine_choice import adapter_key
from luthier.features.serving.targets import stamp, stamp_of
from luthier.ml.inference.models import sources

log = logging.getLogger("luthier.service")


class FreshModels(Mapping[str, Served]):
    """Models by name, each as its files are when it is read by its name. Thread-safe.

    Args:
        home: The home, whose base models have their own digest.
        models: The models as they were chosen.
    """

    def __init__(self, home: Path, models: Mapping[str, Served]) -> None:
        self._home = home
        # Single values are replaced, which is atomic: two threads that find new files replace it by the same.
        self._models = dict(models)
        self._checked: dict[str, str] = {}  # by name: a stamp under which the registered digest was found

    def __getitem__(self, name: str) -> Served:
        """The model of this name.

        Raises:
            KeyError: There is none.
            ConflictError: The base of its adapter was replaced by other weights.
        """
        known = self._models[name]
        try:
            found = self._as_on_disk(name, known)
        except (OSError, ModelSourceError):  # files are being replaced at this moment
            return known
        if found != known:
            self._models[name] = found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def items(self) -> ItemsView[str, Served]:
        """The models as they were when each was read last: a list of them does not fail for one that was replaced."""
        return self._models.items()

    def _as_on_disk(self, name: str, known: Served) -> Served:
        own = known.fallback or known
        now = self._stamped(name, own)
        if known.fallback is None:
            if now != own:
                log.warning("%s: its files were written again; they are loaded again", name)
            return now
        if now == own and _is_of_same_adapter(known, own):
            return known
        log.warning(
            "%s: its files were written again, and its GGUF copy is of the earlier ones; the engine %s answers until "
            "`luthier serve` is started again, which makes another copy",
            name,
            own.engine,
        )
        return now

    def _stamped(self, name: str, own: Served) -> Served:
        """A model by its own files, with the stamp that these have now."""
        place = Path(own.path)
        # What was trained whole has no stamp: a run never writes its result again. What is gone is about to be
        # replaced, and what is loaded answers until then.
        if not own.sha256 or not place.exists():
            return own
        found = stamp(place) if place.is_dir() else stamp_of([place])
        if found in (own.sha256, self._checked.get(name)):
            return own
        # The stamp of an exported GGUF file is that of its folder; a base model has a digest, which says more.
        is_of_folder = place.is_file() and own.sha256 == stamp(place.parent)
        if is_of_folder or any(model.sha256 == own.sha256 for model in sources.local_models(self._home)):
            self._checked[name] = found
            return own
        if own.adapter_path is not None and place.is_dir():
            raise ConflictError(
                f"the base model of {name!r} has other weights than when `luthier serve` was started",
                expected="the weights that its adapter was trained over",
                do="restore them, or start `luthier serve` again",
            )
        return own.model_copy(update={"sha256": found})


def _is_of_same_adapter(copy: Served, own: Served) -> bool:
    """Whether the copy of an adapter was made of the files that the adapter has now."""
    if own.adapter_path is None or copy.adapter_path is None or not Path(own.adapter_path).is_dir():
        return True
    return Path(copy.adapter_path).parent.name == adapter_key(own.adapter_path)
