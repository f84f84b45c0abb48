"""Use cases: import rows from where they are into a dataset: what may be imported, a preview, the job, once again.

An address comes from a user, so the server connects only where the operator lets it (`LUTHIER_IMPORT_SOURCES`): to the
hub, to hosts of the public internet, and to named places of object stores. The job is in `remote_import_job`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from luthier.core.access import Caller
from luthier.core.data_sources import (
    DATA_SUFFIXES,
    HUB,
    OBJECT_STORES,
    check_remote,
    default_name,
    is_remote,
    parse_hub_dataset,
)
from luthier.core.errors import BusyError, ConflictError, DataSourceError, NotFoundError, RequestError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.imports import MAX_ADDRESS, ImportOrder, RemoteOrder, check_is_free, start
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.jobs.records import Job
from luthier.platform.processes.analysis import WarmChild

if TYPE_CHECKING:
    from luthier.core.system.download import RemoteSource

SOURCE: Final = "source"
"""The key of `details` of a version that says where its rows come from."""
_MAX_PREVIEWS: Final = 2
_MAX_STEPS: Final = 50
_DERIVED: Final = ("repair", "split", "annotation", "test case", "review")
"""How versions are made whose rows are those of their parent, changed."""
_previews = threading.BoundedSemaphore(_MAX_PREVIEWS)
_BARE_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+(\[[\w.-]+\])?", re.ASCII)
_HUB_PAGE: Final = re.compile(
    r"/datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:/viewer/(?P<config>[^/]+)(?:/(?P<split>[^/]+))?)?/?"
)


def address_of(text: str, config: str = "", split: str = "") -> str:
    """The address of a source as recipes write it.

    Args:
        text: As a person writes it: `hub:org/dataset`, `org/dataset`, the page of a dataset on the hub, or the address
            of a file.
        config: The configuration of a dataset on the hub; empty for the one in the text.
        split: The same for its split.

    Raises:
        RequestError: No remote source, or a configuration or split of a file.
    """
    address, config, split = text.strip(), config.strip(), split.strip()
    if _BARE_HUB_NAME.fullmatch(address):
        address = f"{HUB}{address}"
    elif "/datasets/" in address:
        address = _of_hub_page(address)
    if not is_remote(address) or not address.isprintable():
        raise RequestError(
            f"{address[:200]!r} is not an address of rows" if address else "no address",
            expected="ORGANISATION/DATASET of the hub, or an address that begins with hub:, https://, s3://, gs:// "
            "or az://",
            do="copy the name from the page of the dataset, or upload a file from your computer",
        )
    if not (config or split):
        return _short(address)
    if not address.startswith(HUB):
        what = f"configuration {config[:60]!r}" if config else f"split {split[:60]!r}"
        raise RequestError(
            f"{what} of {address.partition('?')[0][:200]}",
            expected="a configuration or a split of a dataset on the hub alone",
            do="leave both empty: a file is imported as a whole",
        )
    dataset = parse_hub_dataset(address)
    repo = dataset.repo + (f"@{dataset.revision}" if dataset.revision else "")
    inner = config or dataset.config or dataset.file or ""
    chosen = split or dataset.split or ""
    full = f"{HUB}{repo}" + (f"/{inner}" if inner else "") + (f"[{chosen}]" if chosen else "")
    return _short(parse_hub_dataset(full).text)


def _short(address: str) -> str:
    if len(address) <= MAX_ADDRESS:
        return address
    raise RequestError(
        f"an address of {len(address):,} characters",
        expected=f"at most {MAX_ADDRESS:,}",
        do="copy the name from the page of the dataset, or upload the rows as a file",
    )


def _of_hub_page(address: str) -> str:
    """The dataset whose page on the hub an address is; else the address as it is."""
    from luthier.ml.inference.models.hub import endpoint

    try:
        path = unquote(urlsplit(address.removeprefix(endpoint())).path) if address.startswith(f"{endpoint()}/") else ""
    except ValueError:  # "//[" in the path
        return address
    page = _HUB_PAGE.fullmatch(path)
    if page is None:
        return address
    config = f"/{page['config']}" if page["config"] else ""
    return f"{HUB}{page['repo']}{config}" + (f"[{page['split']}]" if page["split"] else "")


def check_allowed(settings: Settings, address: str) -> None:
    """Check that an address may be imported from, without a connection.

    Raises:
        RequestError: It is malformed, or the operator does not let this server import from there.
    """
    check_remote(address)
    words = settings.import_sources.split()
    if any(_is_within(address, word) for word in words) and "::" not in address:
        return
    if address.startswith("http://") and "https" in words and settings.imports_may_reach_private:
        return  # of this machine: `check_remote` refuses other hosts without encryption
    allowed = ", ".join(word for word in words if word != "none") or "nothing"
    raise RequestError(
        f"this server does not import from {address.partition('?')[0][:200]}",
        expected=f"a source that its operator allows: {allowed}",
        do="upload the rows as a file, or ask the operator to add the place to LUTHIER_IMPORT_SOURCES",
    )


def _is_within(address: str, word: str) -> bool:
    """Whether an address belongs to a word of `LUTHIER_IMPORT_SOURCES`."""
    if word in ("hub", "https"):
        return address.startswith(HUB if word == "hub" else "https://")
    if word.startswith(HUB):
        return address.startswith(HUB) and _is_below(f"{HUB}{parse_hub_dataset(address).repo}", word)
    # A path with steps upwards could leave the place; a query may follow the last step.
    return not re.search(r"/\.\.(?:[/?#]|$)", address) and "%2e" not in address.lower() and _is_below(address, word)


def _is_below(address: str, place: str) -> bool:
    place = place.rstrip("/")
    return address == place or address.startswith(f"{place}/")


def look_up_allowed(settings: Settings, address: str) -> RemoteSource:
    """The files of a source as they are now, with connections only to where the operator lets this server connect.

    Raises:
        RequestError: The address may not be imported from, a file has a name of no known format, or no driver for such
            a store is installed.
        NotFoundError: No such dataset, split or file.
        DataSourceError: No answer, a refusal, or a host that leads to an address that is not public.
    """
    from luthier.ml.data.remote.cache import look_up
    from luthier.platform.http.vetted_transport import VettedTransport

    check_allowed(settings, address)
    found = look_up(address, partial(VettedTransport, may_reach_private=settings.imports_may_reach_private))
    for file in found.files:
        # Before gigabytes are downloaded that cannot be read: what a file holds is decided by its name.
        if not file.name.lower().removesuffix(".gz").endswith(DATA_SUFFIXES):
            raise RequestError(
                f"{(file.name or address.partition('?')[0])[:200]} has an extension that names no known format",
                expected=f"a file that ends in {', '.join(DATA_SUFFIXES)}, each also with .gz",
                do="name the address of such a file, or upload the rows under a name that says what they are",
            )
    return found


def preview(context: Context, order: RemoteOrder) -> dict[str, Any]:
    """What is at an address, with its first rows; found by a separate process. See `remote_preview.look`.

    Raises:
        RequestError: The address may not be imported from, or it cannot be reached, which is no failure of this server.
        NotFoundError: No such dataset, split or file.
        BusyError: Two previews are in progress already.
        WorkError: The process took too long, or ended.
    """
    check_allowed(context.settings, order.address)
    # Of its own, and not one of the places for other questions: a slow server elsewhere must not hold up plans.
    if not _previews.acquire(blocking=False):
        raise BusyError(
            f"{_MAX_PREVIEWS} previews are in progress already",
            expected="one of them to end soon",
            do="try again in a moment, or import without a preview",
        )
    child = WarmChild()
    try:
        return child.answer_to(context, "remote", {"address": order.address})
    except DataSourceError as error:
        raise RequestError(error.came, expected=error.expected, do=error.do) from error
    finally:
        child.close()
        _previews.release()


def start_import(
    context: Context, caller: Caller, order: RemoteOrder, *, name: str = "", dataset_id: str = "", note: str = ""
) -> Job:
    """Queue the import of rows from elsewhere.

    Args:
        context: The home.
        caller: Whose project it is.
        order: Where the rows are, and which of them.
        name: Of a new dataset; empty takes that of the source.
        dataset_id: The dataset that gets a new version; empty for a new dataset.
        note: Why, in the author's words.

    Raises:
        RequestError: An address that may not be imported from, both a number and a share of rows, a wrong name, or a
            column for a field that no shape has.
        NotFoundError: No such dataset.
        ConflictError: The name is taken.
    """
    check_allowed(context.settings, order.address)
    if order.max_rows is not None and order.fraction is not None:
        raise RequestError(
            f"{order.max_rows:,} rows and {order.fraction:.4g} of the rows",
            expected="a number of rows or a share of them",
            do="leave one of the two empty",
        )
    if order.columns:
        from luthier.ml.data.rows.shapes import check_mapping

        # Now, and not after gigabytes were downloaded; a version with such a mapping could not be read.
        check_mapping(order.columns)
    if dataset_id:
        context.datasets.get(caller.project_id, dataset_id)
        called = ""
    elif name.strip():
        called = dataset_versions.checked_name(name)
        check_is_free(context, caller, called)
    else:
        called = dataset_versions.free_name(context, caller.project_id, default_name(order.shown))
    made = ImportOrder(
        source=order,
        name=called,
        dataset_id=dataset_id,
        note=note.strip()[: dataset_versions.MAX_NOTE_CHARACTERS],
        author=caller.name,
    )
    return start(context, caller, made)


def start_again(context: Context, caller: Caller, version: DatasetVersion) -> Job:
    """Queue the import of a version once again: a new version is made where something has changed.

    Raises:
        NotFoundError: No such dataset.
        ConflictError: The version was not imported, or its address had a query, which is not kept.
        RequestError: The operator does not let this server import from there any more.
    """
    source = source_of(version)
    if source is None:
        raise ConflictError(
            f"version {version.number} was not imported from an address",
            expected="a version that was",
            do="add data to the dataset as a new version",
        )
    if source.get("has_query"):
        raise ConflictError(
            f"the address {source['address']} had a query (?…), which is not kept, since it may hold a signature",
            expected="the whole address",
            do="import it as a new version of this dataset, with the whole address",
        )
    order = RemoteOrder(address=source["address"], columns=version.columns, **source.get("selection", {}))
    return start_import(context, caller, order, dataset_id=version.dataset_id)


def source_of(version: DatasetVersion) -> dict[str, Any] | None:
    """Where the rows of a version were imported from; None where they were not."""
    found: dict[str, Any] | None = version.details.get(SOURCE)
    return found


def imported_version(context: Context, caller: Caller, version: DatasetVersion) -> DatasetVersion | None:
    """The imported version that the rows of a version were made of by repairs, splits and decisions, or itself."""
    one = version
    for _ in range(_MAX_STEPS):
        if source_of(one) is not None:
            return one
        of = one.details.get("of") if one.origin == "split" else None
        if of is None and one.origin not in _DERIVED:
            return None
        place = (one.dataset_id, one.parent) if of is None else (of.get("dataset_id"), of.get("version"))
        if None in place:
            return None
        try:
            one = dataset_versions.get_version(context, caller, str(place[0]), place[1])
        except NotFoundError:  # removed since
            return None
    return None


def short_source(version: DatasetVersion | None) -> str:
    """Address and revision of an imported version in a few words; empty for others."""
    source = None if version is None else source_of(version)
    return "" if source is None else f"{source['address']} @ {short_revision(source)}"


def short_revision(source: Mapping[str, Any]) -> str:
    """The revision of a source: of a commit its first digits."""
    revision = str(source["revision"])
    return revision[:12] if re.fullmatch(r"[0-9a-f]{40,64}", revision) else revision[:60]


def page_of(source: Mapping[str, Any]) -> str:
    """The address that leads to a source in a browser; empty for object stores."""
    from luthier.ml.inference.models.hub import endpoint

    address = str(source["address"])
    if address.startswith(HUB):
        return f"{endpoint()}/datasets/{parse_hub_dataset(address).repo}"
    return "" if address.startswith(OBJECT_STORES) else address
