"""Write the documents of a fictitious law firm: statutes, case notes and briefs, and drafting rows of the briefs.

    python make_documents.py [FOLDER]

Everything is invented: sections, courts, parties, facts. It is no law of Georgia or of any other place. The same seed
writes the same bytes.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

SEED = 20
NUM_MATTERS = 48
MARK = "Invented for an example. Not the law of Georgia or of any other place; all parties are fictitious."

# (section, title, what it says, the test that it sets)
STATUTES = (
    (
        "W-101",
        "Injury by accident",
        "An injury is compensable where it arises out of and in the course of the employment. It arises out of the "
        "employment where a reasonable person, upon all the circumstances, would see a causal link between the "
        "conditions of the work and the harm.",
        "a causal link between the conditions of the work and the harm",
    ),
    (
        "W-104",
        "Notice",
        "The employee shall tell the employer of the accident within thirty days. Late notice bars the claim unless a "
        "supervisor knew of the accident, or the delay did the employer no harm.",
        "knowledge of a supervisor, or a delay that did no harm",
    ),
    (
        "W-112",
        "Change of condition",
        "Benefits that have ended may be taken up again within two years of the last payment, where the employee shows "
        "that the condition has worsened since and that the work of before can no longer be done.",
        "a condition that has worsened since the last payment",
    ),
    (
        "W-120",
        "Suitable light duty",
        "An employer may end wage benefits by offering light duty within the limits set by the treating doctor. The "
        "offer must be in writing and must describe the tasks, the hours and the place.",
        "a written offer within the limits of the treating doctor",
    ),
    (
        "W-127",
        "Earlier impairment",
        "Where work makes an earlier impairment worse, the whole of the disability is compensable for as long as the "
        "worsening lasts. The employee bears the proof of the worsening.",
        "proof that the work made the earlier impairment worse",
    ),
    (
        "W-133",
        "Travel",
        "Travel to and from work is outside the course of employment, save where the employer provides the vehicle, "
        "pays for the time, or sends the employee on an errand.",
        "a vehicle of the employer, paid time, or an errand",
    ),
    (
        "W-140",
        "Wilful misconduct",
        "No benefits are due where the employee knowingly broke a safety rule that was written, taught and enforced, "
        "and the breach caused the injury.",
        "a rule that was written, taught and enforced, and a knowing breach of it",
    ),
    (
        "W-151",
        "Choice of doctor",
        "The employer shall post a list of at least six doctors. Where no list is posted, the employee may choose any "
        "doctor at the cost of the employer.",
        "a list of at least six doctors that was posted",
    ),
)
FIRST = ("Ada", "Bram", "Cleo", "Dov", "Edda", "Fenn", "Greta", "Hale", "Ivo", "Juna", "Kell", "Lior", "Mara", "Nils")
LAST = (
    "Ashdown",
    "Birchley",
    "Corrow",
    "Dunmere",
    "Eastley",
    "Farrowby",
    "Glenholt",
    "Harrowmont",
    "Inglesby",
    "Kettleby",
)
EMPLOYERS = (
    "Blue Heron Cabinet Works", "Lantern Street Bakery", "Quillfeather Logistics", "Redfern Orchard Company",
    "Stonebridge Linen Service", "Tallow and Pine Furniture", "Wrenfield Paper Mill", "Amberline Cold Storage",
)  # fmt: skip
WORK = (
    ("loading flour sacks", "lower back"), ("stacking lumber", "right shoulder"), ("cleaning the press", "left hand"),
    ("driving the yard truck", "neck"), ("sorting wet linen", "both wrists"), ("climbing to the loft", "left knee"),
    ("moving pallets", "right ankle"), ("trimming boards", "left forearm"),
)  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
# For each section: facts that meet its test, and facts that do not.
FACTS = {
    "W-101": (
        "The floor was wet from the night shift and no mat had been laid.",
        "The employee had stopped work to show a friend a trick with a ladder.",
    ),
    "W-104": (
        "The shift leader saw the accident and wrote it into the log the same day.",
        "Nobody was told for ten weeks, and the machine had been scrapped by then.",
    ),
    "W-112": (
        "A new scan in the second year shows a tear that the first scan did not.",
        "The two scans, a year apart, show the same findings.",
    ),
    "W-120": (
        "The offer came by letter, with the tasks, the hours and the doctor's signature.",
        "The offer was made by telephone and named no tasks.",
    ),
    "W-127": (
        "Before the accident the employee worked full shifts without a day of absence.",
        "The doctor found the same limits in the year before the accident.",
    ),
    "W-133": (
        "The dispatcher had asked for parts to be fetched on the way home.",
        "The employee was on the usual road home in a private car.",
    ),
    "W-140": (
        "The rule stood on every machine, was taught each spring, and two others had been sent home for breaking it.",
        "The rule stood in a binder that no one had opened since the move.",
    ),
    "W-151": (
        "The only list in the break room named two doctors, one of them retired.",
        "A list of eight doctors hung beside the time clock.",
    ),
}


@dataclass(frozen=True)
class Matter:
    """One fictitious dispute. favours_test: whether its facts meet the test of its section."""

    number: str
    employee: str
    employer: str
    work: str
    part: str
    date: str
    section: tuple[str, str, str, str]
    favours_test: bool
    precedent: str

    @property
    def facts(self) -> str:
        """What happened, in two sentences."""
        fact = FACTS[self.section[0]][0 if self.favours_test else 1]
        return f"On {self.date}, while {self.work} for {self.employer}, {self.employee} hurt the {self.part}. {fact}"

    @property
    def holding(self) -> str:
        """What a court would say of it."""
        met = "is met" if self.favours_test else "is not met"
        return f"The test of {self.section[0]}, {self.section[3]}, {met} on these facts."


def make_matters(seed: int = SEED, num: int = NUM_MATTERS) -> list[Matter]:
    """Matters over all sections, every one with parties, work and outcome of its own."""
    draw = random.Random(seed)
    matters = []
    for index in range(num):
        work, part = draw.choice(WORK)
        matters.append(
            Matter(
                number=f"{2031 + index % 4}-WC-{index + 101}",
                employee=f"{draw.choice(FIRST)} {draw.choice(LAST)}",
                employer=draw.choice(EMPLOYERS),
                work=work,
                part=part,
                date=f"{draw.randint(1, 28)} {draw.choice(MONTHS)} {2029 + index % 3}",
                section=STATUTES[index % len(STATUTES)],
                favours_test=draw.random() < 0.5,
                precedent=_precedent(draw),
            )
        )
    return matters


def _precedent(draw: random.Random) -> str:
    return f"{draw.choice(LAST)} v. {draw.choice(EMPLOYERS)}, Example Ct. App. {draw.randint(2019, 2028)}"


def argument(matter: Matter) -> str:
    """The argument as this firm writes it: the rule, the facts against it, the conclusion."""
    section, title, _, test = matter.section
    fact = FACTS[section][0 if matter.favours_test else 1]
    met, last = ("meet", "should find for") if matter.favours_test else ("do not meet", "should find against")
    return (
        f"Section {section} ({title}) asks for {test}. {fact} These facts {met} that test, as in {matter.precedent}. "
        f"The Board {last} {'the party that relies on it' if section != 'W-101' else matter.employee} on this point."
    )


def drafting_rows(matter: Matter) -> list[dict[str, str]]:
    """What an associate would ask for and what the firm would file: issue, argument and relief of one matter."""
    section, title, text, _ = matter.section
    head = f"Matter {matter.number}. {matter.facts}\nAuthority: {section}, {title}. {text}\n"
    tasks = {
        "issue": (
            "State the issue in one sentence, in the style of the firm.",
            f"Whether, under Section {section}, {matter.employee} and {matter.employer} are bound by the rule on "
            f"{title.lower()}, given that {_lower(FACTS[section][0 if matter.favours_test else 1])}",
        ),
        "argument": (f"Draft the argument, relying on {matter.precedent}.", argument(matter)),
        "relief": (
            "Draft the request for relief.",
            f"For these reasons the undersigned asks the Board to hold that {_lower(matter.holding)[:-1]}, and to "
            f"decide matter {matter.number} accordingly.",
        ),
    }
    return [
        {"matter": matter.number, "task": name, "prompt": f"{head}{task}", "completion": answer}
        for name, (task, answer) in tasks.items()
    ]


def write_documents(folder: Path) -> None:
    """`documents/` with statutes, cases and briefs, and `drafts.jsonl` beside it."""
    matters = make_matters()
    for kind in ("statutes", "cases", "briefs"):
        (folder / "documents" / kind).mkdir(parents=True, exist_ok=True)
    for section, title, text, test in STATUTES:
        body = f"# Section {section}. {title}\n\n{MARK}\n\n{text}\n\nWhat has to be shown: {test}.\n"
        _write(folder / "documents" / "statutes" / f"{section}.md", body)
    for matter in matters[::2]:
        body = (
            f"# {matter.employee} v. {matter.employer}\n\n{MARK}\n\nExample Board, {matter.number}.\n\n## Facts\n\n"
            f"{matter.facts}\n\n## Holding\n\n{matter.holding} {matter.precedent} is followed.\n"
        )
        _write(folder / "documents" / "cases" / f"{matter.number}.md", body)
    for matter in matters:
        rows = {row["task"]: row["completion"] for row in drafting_rows(matter)}
        body = (
            f"# Brief in matter {matter.number}\n\n{MARK}\n\n## Facts\n\n{matter.facts}\n\n"
            f"## Issue\n\n{rows['issue']}\n\n## Argument\n\n{rows['argument']}\n\n## Relief\n\n{rows['relief']}\n"
        )
        _write(folder / "documents" / "briefs" / f"{matter.number}.md", body)
    lines = [json.dumps(row, ensure_ascii=False) for matter in matters for row in drafting_rows(matter)]
    _write(folder / "drafts.jsonl", "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


if __name__ == "__main__":
    write_documents(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
