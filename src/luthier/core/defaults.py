"""Default numbers that recipes, commands and requests share. Imports nothing: commands read it."""

from __future__ import annotations

from typing import Final

NEW_TOKENS: Final = 128
"""Tokens that an answer may take."""
NUM_SHOTS: Final = 4
"""Examples in the prompt of the second baseline."""
NUM_JUDGED: Final = 200
"""Held-out rows that are evaluated at most."""
NUM_DRAWS: Final = 4
"""Draws of few-shot examples whose mean is reported, where there is time for more than one."""
SECOND_VERDICT_TOKENS: Final = 4096
"""Tokens of a second reply of a judge or grader, where the first was cut off before its verdict."""
SYNTHESIS_TOKENS: Final = 256
"""Tokens of a reply in which a model writes a question and its answer from a passage."""
TEACHER_TOKENS: Final = 512
"""Tokens of a teacher's answer, from which a student learns; a longer one is refused."""
RATED_TOKENS: Final = 256
"""Tokens of an answer that people rate."""
CHAT_TOKENS: Final = 512
"""Tokens of an answer in a chat on the command line."""
