"""Threads of a Slack export: `users.json`, `channels.json`, and a folder for each channel with a JSON file a day.

A thread is a conversation: who began it is the user, everybody else the assistant, unless it was chosen who answers.
Messages outside of threads are left out and counted: which of them answer which the export does not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import DataError
from luthier.ml.data.conversations.turns import Assistants, Exchange, Role, Tally, Turn
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.read_json import json_document

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}\.json")
_MARKUP: Final = re.compile(r"<([^<>\n]*)>")
_ESCAPES: Final = (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))
"""The three characters that Slack escapes, and no others; the ampersand comes last."""
_SPOKEN_SUBTYPES: Final = ("", "thread_broadcast", "me_message", "file_share")
_LISTS: Final = ("channels.json", "groups.json", "dms.json", "mpims.json")


def is_slack_folder(folder: Path) -> bool:
    """Whether a folder is an unpacked export: the list of users, a list of channels, and days."""
    if not (folder / "users.json").is_file() or not any((folder / name).is_file() for name in _LISTS):
        return False
    return any(_DAY.fullmatch(file.name) for file in folder.glob("*/*.json"))


def export_files(folder: Path) -> Iterator[Path]:
    """The files of an export: its lists, and the days of its channels."""
    yield from sorted(folder.glob("*.json"))
    yield from sorted(file for file in folder.glob("*/*.json") if _DAY.fullmatch(file.name))


def slack_exchanges(folder: Path, name: str, chosen: Assistants, tally: Tally) -> Iterator[Exchange]:
    """Each thread as a conversation; one channel is in memory at a time.

    Args:
        folder: of the export.
        name: what people call it.
        chosen: who answers: names, addresses or ids of members; none takes whoever did not begin the thread.
        tally: counts what is left out.

    Raises:
        DataError: the list of users cannot be read.
    """
    users = _users(folder / "users.json")
    names = {user: _name(person) for user, person in users.items()}
    for channel in sorted(one for one in folder.iterdir() if one.is_dir()):
        threads: dict[str, dict[str, Mapping[str, Any]]] = {}
        for day in sorted(file for file in channel.glob("*.json") if _DAY.fullmatch(file.name)):
            for message in _messages(day, tally):
                began = str(message.get("thread_ts") or message.get("ts") or "")
                # A broadcast reply is in the export twice, with one time.
                threads.setdefault(began, {})[str(message.get("ts") or "")] = message
        for began, thread in sorted(threads.items(), key=lambda one: _time(one[0])):
            in_order = [message for _, message in sorted(thread.items(), key=lambda one: _time(one[0]))]
            if len(in_order) == 1 and not in_order[0].get("thread_ts"):
                tally.parts_left_out["messages outside of threads"] += 1
                continue
            if began not in thread:
                tally.left_out["threads without their first message"] += 1
                continue
            opener = _author(in_order[0])
            turns = tuple(_turn(message, opener, users, names, chosen, tally) for message in in_order)
            yield Exchange("", f"{name}, #{channel.name}, thread {began}", turns)


def _messages(day: Path, tally: Tally) -> Iterator[Mapping[str, Any]]:
    """What people wrote on a day."""
    try:
        found = json_document(open_source(day))
    except DataError:
        found = None
    if not isinstance(found, list):
        tally.parts_left_out["days that cannot be read"] += 1
        return
    for message in found:
        if not isinstance(message, dict) or message.get("type", "message") != "message":
            tally.parts_left_out["entries that are no messages"] += 1
        elif message.get("subtype") == "bot_message" or (message.get("bot_id") and not message.get("user")):
            tally.parts_left_out["messages of bots"] += 1
        elif str(message.get("subtype") or "") not in _SPOKEN_SUBTYPES or message.get("hidden"):
            tally.parts_left_out["notes of Slack"] += 1
        elif not _author(message):
            tally.parts_left_out["messages without an author"] += 1
        else:
            yield message


def _turn(
    message: Mapping[str, Any],
    opener: str,
    users: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, str],
    chosen: Assistants,
    tally: Tally,
) -> Turn:
    author = _author(message)
    if isinstance(attached := message.get("files"), list) and attached:
        tally.parts_left_out["attachments"] += len(attached)
    role: Role
    if chosen:
        person = users.get(author) or {"profile": message.get("user_profile")}
        role = "assistant" if chosen.match(author, *_all_names(person)) else "user"
    else:
        role = "user" if author == opener else "assistant"
    # Members of other workspaces are not in the list of users.
    own = message.get("user_profile")
    shown = names.get(author) or (_name({"id": author, "profile": own}) if isinstance(own, dict) else author)
    return Turn(shown, role, readable(str(message.get("text") or ""), names))


def readable(text: str, names: Mapping[str, str]) -> str:
    """A message as Slack shows it: names in place of ids, links written out, and its three escapes resolved.

    Args:
        text: as the export has it.
        names: of members, by id.
    """

    def shown(found: re.Match[str]) -> str:
        target, _, label = found[1].partition("|")
        if target.startswith("@"):
            return "@" + (names.get(target[1:]) or label or target[1:])
        if target.startswith("#"):
            return "#" + (label or target[1:])
        if target.startswith("!"):
            # `<!here>`, `<!subteam^S1|@support>`, `<!date^1392734382^{date}|18 February>`
            return label or "@" + target[1:].partition("^")[0]
        address = target.removeprefix("mailto:").removeprefix("tel:")
        is_same = not label or label == address or target.partition("://")[2].rstrip("/") == label.rstrip("/")
        return address if is_same else f"{label} ({address})"

    text = _MARKUP.sub(shown, text)
    for escaped, character in _ESCAPES:
        text = text.replace(escaped, character)
    return text


def _users(path: Path) -> dict[str, Mapping[str, Any]]:
    document = json_document(open_source(path))
    people = [one for one in document if isinstance(one, dict)] if isinstance(document, list) else []
    return {str(one.get("id")): one for one in people}


def _all_names(person: Mapping[str, Any]) -> list[str]:
    profile = person.get("profile")
    fields = profile if isinstance(profile, dict) else {}
    found = (
        *(fields.get(key) for key in ("display_name", "real_name", "email")),
        *(person.get(key) for key in ("real_name", "name")),
    )
    return [one for one in found if isinstance(one, str) and one.strip()]


def _name(person: Mapping[str, Any]) -> str:
    return next((one for one in _all_names(person) if "@" not in one), str(person.get("id") or ""))


def _author(message: Mapping[str, Any]) -> str:
    return str(message.get("user") or "")


def _time(stamp: str) -> tuple[float, str]:
    """A time such as `1482960137.003543`, as a key that sorts what cannot be read first."""
    try:
        return float(stamp), stamp
    except ValueError:
        return 0.0, stamp
