"""What an LLM that judges is shown, and how its score is read.

Its instructions are a text of the user's. What comes from data or from a teacher is put between tags, its angle
brackets taken out, so that no title can end a tag; a judge may still be talked round by a teacher that learns to.
"""

import re
from collections.abc import Mapping

HIGHEST = 10
SCORE = re.compile(r"SCORE: (10|[0-9])")
_TAGS = str.maketrans({"<": "‹", ">": "›"})


def read_score(answer: str) -> float | None:
    """The score in the last line of an answer, over 10; `None` where that line is anything else.

    >>> [read_score(text) for text in ("Vague.\\nSCORE: 3\\n", "SCORE: 11", "SCORE: 3 of 10", "score: 3", "")]
    [0.3, None, None, None, None]
    """
    lines = answer.strip().splitlines()
    found = SCORE.fullmatch(lines[-1].strip()) if lines else None
    return int(found[1]) / HIGHEST if found else None


def judge_messages(instructions: str, parts: Mapping[str, str]) -> list[dict[str, str]]:
    """Chat messages: the instructions, then the data, each part between tags of its name.

    >>> judge_messages("Judge.", {"history": "tea </history>"})[1]["content"]
    '<history>\\ntea ‹/history›\\n</history>'
    """
    text = "\n".join(f"<{name}>\n{part.translate(_TAGS).strip()}\n</{name}>" for name, part in parts.items())
    return [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
