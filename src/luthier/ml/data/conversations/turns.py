"""A conversation of people as a chat row: who is the user, who the assistant, and what is left out, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Role = Literal["user", "assistant"]

_NUM_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a conversation.

    Attributes:
        author: Who wrote it: an address or a name.
        role: What the author is in the row.
        text: What was written.
    """

    author: str
    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation as it was exported.

    Attributes:
        title: Its subject; may be empty.
        source: Where it is from: the file, and its name in the file.
        turns: Its messages in the order of time.
    """

    title: str
    source: str
    turns: tuple[Turn, ...]


@dataclass(slots=True)
class Tally:
    """What became of an export, counted.

    Attributes:
        num_rows: Conversations that are rows.
        left_out: Conversations that are none, by what they are.
        parts_left_out: Messages and other parts of conversations that were left out, by what they are.
        users: Messages by their author, of the users in the rows.
        assistants: Messages by their author, of the assistants in the rows.
    """

    num_rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    parts_left_out: Counter[str] = field(default_factory=Counter)
    users: Counter[str] = field(default_factory=Counter)
    assistants: Counter[str] = field(default_factory=Counter)

    def roles_summary(self) -> str:
        """Who the assistant is and who the user: the most frequent authors, with their messages."""
        return f"messages of the assistant: {_names(self.assistants)}; of the user: {_names(self.users)}"

    def left_out_summary(self) -> str:
        """What was left out, with counts; empty where nothing was."""
        return "; ".join(f"{what}: {num:,}" for what, num in self.all_left_out)

    @property
    def all_left_out(self) -> list[tuple[str, int]]:
        """What was left out and how much of it: whole conversations first, then parts of others."""
        return [*self.left_out.most_common(), *self.parts_left_out.most_common()]

    def as_json(self) -> dict[str, Any]:
        """The counts, for `--json`."""
        return {
            "num_rows": self.num_rows,
            "left_out": dict(self.left_out),
            "parts_left_out": dict(self.parts_left_out),
            "assistants": dict(self.assistants.most_common(100)),
            "num_assistants": len(self.assistants),
            "users": dict(self.users.most_common(100)),
            "num_users": len(self.users),
        }


def _names(authors: Counter[str]) -> str:
    """`a@x.de 12, b@x.de 3, ... (9)`: how many messages of whom, and in the end of how many people."""
    named = ", ".join(f"{name} {num:,}" for name, num in authors.most_common(_NUM_NAMED))
    return f"{named}, ... ({len(authors):,})" if len(authors) > _NUM_NAMED else named or "0"


def chat_rows(exchanges: Iterable[Exchange], tally: Tally) -> Iterator[dict[str, Any]]:
    """Each conversation with a question and an answer as a chat row; `tally` counts the rest.

    Messages of one side that follow one another are one turn. What the assistant's side wrote before the first
    question, and questions at the end that nobody answered, teach nothing and are left out.
    """
    for exchange in exchanges:
        spoken = [turn for turn in exchange.turns if turn.text.strip()]
        if blank := len(exchange.turns) - len(spoken):
            tally.parts_left_out["messages without text"] += blank
        roles = [turn.role for turn in spoken]
        if "assistant" not in roles:
            tally.left_out["conversations without an answer of the assistant"] += 1
            continue
        first = roles.index("user") if "user" in roles else len(roles)
        last = len(roles) - 1 - roles[::-1].index("assistant")
        if first > last:
            tally.left_out["conversations without a question that the assistant answered"] += 1
            continue
        tally.parts_left_out["messages of the assistant before the first question"] += first
        tally.parts_left_out["messages at the end that nobody answered"] += len(roles) - 1 - last
        messages: list[dict[str, str]] = []
        for turn in spoken[first : last + 1]:
            (tally.users if turn.role == "user" else tally.assistants)[turn.author] += 1
            text = turn.text.strip()
            if messages and messages[-1]["role"] == turn.role:
                messages[-1]["content"] += f"\n\n{text}"
            else:
                messages.append({"role": turn.role, "content": text})
        tally.num_rows += 1
        yield {"title": exchange.title, "messages": messages, "source": exchange.source}
    # A count of zero says nothing.
    tally.parts_left_out = +tally.parts_left_out


class Assistants:
    """Who answers as the assistant, as a person has chosen: addresses, `@domain`, names or ids.

    Args:
        chosen: in any case; none where nothing was chosen.
    """

    def __init__(self, chosen: Iterable[str]) -> None:
        self.chosen: Final = tuple(dict.fromkeys(one.strip() for one in chosen if one.strip()))
        self._known: Final = {one.casefold(): one for one in self.chosen}
        self._matched: Final = set[str]()

    def __bool__(self) -> bool:
        """Whether somebody was chosen."""
        return bool(self.chosen)

    def match(self, *names: str) -> bool:
        """Whether one of the names, ids or addresses of an author is among those that were chosen."""
        folded = {name.strip().casefold() for name in names}
        domains = {f"@{name.rpartition('@')[2]}" for name in folded if "@" in name}
        found = (folded | domains) & self._known.keys()
        self._matched.update(found)
        return bool(found)

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Those who were chosen and have written nothing so far, such as a name with a wrong letter."""
        return tuple(one for key, one in self._known.items() if key not in self._matched)
