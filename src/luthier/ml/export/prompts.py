"""Prompts with short answers of our own, for the proof of a model that comes without held-out rows.

They ask little on purpose: what is compared is whether two runtimes say the same, not whether it is right. Digits,
accents, code, blank lines and other scripts are among them, since those are where tokenizers part.
"""

from __future__ import annotations

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example

_PAIRS: tuple[tuple[str, str], ...] = (
    ("Which wood is the front of a violin made of?", "Spruce."),
    ("Name three string instruments.", "Violin, cello and guitar."),
    ("What is 17 plus 25?", "42"),
    ("Count from 1998 to 2003.", "1998, 1999, 2000, 2001, 2002, 2003"),
    ("Translate to French: the bridge is too low.", "Le chevalet est trop bas."),
    ("Translate to German: the strings are old.", "Die Saiten sind alt."),
    ("Write a haiku about varnish.", "Amber on the wood\nthin as breath on winter glass\nslow light settles in"),
    ("Is ebony harder than willow? Answer with one word.", "Yes"),
    ("Put these in order: cello, violin, viola.", "violin, viola, cello"),
    ("Finish the sentence: A luthier is a person who", "builds and repairs stringed instruments."),
    ("What does this print?\n\n    for i in range(3):\n        print(i * 10)", "0\n10\n20"),
    ('Return JSON with the keys "wood" and "year".', '{"wood": "maple", "year": 1721}'),
    ("Correct the spelling: The gitar is out of toon.", "The guitar is out of tune."),
    ("Which is longer, 64.5 cm or 0.7 m?", "0.7 m"),
    ("Summarise: The post stands inside. Moving it changes the tone.", "A moved post changes the tone."),
    ("Give the opposite of 'bright'.", "dark"),
    ("How many strings has a violin?", "4"),
    ("Write one line of SQL that counts the rows of the table repairs.", "SELECT COUNT(*) FROM repairs;"),
    ("Rewrite politely: Pay now.", "Could you please settle the invoice?"),
    ("What is the capital of Italy?", "Rome"),
    ("¿De qué color es el ébano?", "Negro."),
    ("Quel est le mot pour « archet » en anglais ?", "Bow."),
    ("日本語で「木」は何と読みますか。", "き"),
    ("Напиши слово «скрипка» по-английски.", "violin"),
    ("Reply with an emoji of a violin.", "🎻"),
    ("Is 91 a prime number?", "No: 91 = 7 * 13."),
    ("List the even numbers below 10, one a line.", "2\n4\n6\n8"),
    ("What comes next: 3, 6, 12, 24, ...?", "48"),
    ("Make a title for a note on humidity.", "Keep the Room at Fifty Percent"),
    ("Explain in one sentence why hide glue is used.", "Heat and water open the joint again without harm."),
    ("Write def twice(x) in Python.", "def twice(x):\n    return 2 * x"),
    ("Say nothing but the word done.", "done"),
)


def built_in_examples() -> tuple[Example, ...]:
    """32 examples of one question and one answer."""
    return tuple(
        Example(
            id=f"built-in:{number}",
            conversation=Conversation(
                messages=(Message(role="user", content=question), Message(role="assistant", content=answer))
            ),
        )
        for number, (question, answer) in enumerate(_PAIRS, start=1)
    )
