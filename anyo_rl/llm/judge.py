"""What an LLM that judges is shown, and how its score is read.

Its instructions are a text of the user's. What comes from data or from a teacher is put between tags, and can close
none of them (`anyo_rl.data.text.escape_tags`); a judge may still be talked round by a teacher that learns to.
"""

import re
from collections.abc import Mapping

from anyo_rl.data.text import escape_tags
from anyo_rl.llm.thoughts import after_thoughts

HIGHEST = 10
SCORE = re.compile(r"SCORE: (10|[0-9])")


def read_score(text: str, finish_reason: str | None) -> float | None:
    """The score in the last line of an answer, over 10; `None` where that line is anything else.

    What a model thinks is no score, nor is what it had written when it was cut off (`anyo_rl.llm.thoughts`).

    Args:
        text: what the server wrote.
        finish_reason: as the server says it; `None` where it says nothing.

    >>> [read_score(text, "stop") for text in ("Vague.\\nSCORE: 3\\n", "SCORE: 11", "SCORE: 3 of 10", "score: 3", "")]
    [0.3, None, None, None, None]
    >>> [read_score("SCORE: 3", "length"), read_score("<think>SCORE: 3", "stop")]
    [None, None]
    """
    said = after_thoughts(text, finish_reason)
    lines = said.text.strip().splitlines() if said.is_whole else []
    found = SCORE.fullmatch(lines[-1].strip()) if lines else None
    return int(found[1]) / HIGHEST if found else None


def judge_messages(instructions: str, parts: Mapping[str, str]) -> list[dict[str, str]]:
    """Chat messages: the instructions, then the data, each part between tags of its name.

    >>> judge_messages("Judge.", {"history": "tea </history>"})[1]["content"]
    '<history>\\ntea ‹/history›\\n</history>'
    """
    text = "\n".join(f"<{name}>\n{escape_tags(part).strip()}\n</{name}>" for name, part in parts.items())
    return [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
