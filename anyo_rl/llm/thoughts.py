"""What an LLM's answer says once it has thought: judges and rationales read this part alone.

A model's thoughts may be in its text, between tags. Chat templates often write the opening one themselves, so that the
text begins in the middle of a thought: everything up to the last closing tag is thought.
"""

import re
from dataclasses import dataclass

# Tags of Qwen and DeepSeek, of Claude-like prompts, and Magistral's brackets.
_TAG = re.compile(r"<(?P<end>/?)think(?:ing)?>|\[(?P<square_end>/?)THINK\]", re.IGNORECASE)
_CUT = {"length", "max_tokens", "content_filter"}  # as different servers say it


@dataclass(frozen=True)
class Said:
    """What an answer says.

    Attributes:
        text: what follows the last thought; empty where the last one never closes.
        is_whole: whether the model came to its end: not where the server cut it off or a thought never closes.
    """

    text: str
    is_whole: bool


def after_thoughts(text: str, finish_reason: str | None) -> Said:
    """The part of an answer after its thoughts.

    Args:
        text: what the server wrote.
        finish_reason: as the server says it; `None` where it says nothing.

    >>> after_thoughts("<think>a</think>b<thinking>c</thinking>d", "stop")
    Said(text='d', is_whole=True)
    >>> after_thoughts("b </think> d", "length")
    Said(text=' d', is_whole=False)
    >>> after_thoughts("<think>SCORE: 9", "stop")
    Said(text='', is_whole=False)
    """
    tags = list(_TAG.finditer(text))
    closing = [tag for tag in tags if tag["end"] or tag["square_end"]]
    if tags and (not closing or closing[-1] is not tags[-1]):
        return Said("", False)
    rest = text[closing[-1].end() :] if closing else text
    return Said(rest, finish_reason is None or finish_reason.lower() not in _CUT)
