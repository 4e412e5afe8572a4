"""`latent`: thoughts without words. Prompts end with K added tokens of ours, whose vectors are learned.

Pause tokens (Goyal et al. 2024, arXiv 2310.02226): they are never sampled and have no loss, and give the teacher K
more places to compute at before it answers. They end the prompt, so that SFT, the engine, samplers and servers read
them like every other token. In a chat they end the user's message.
"""

import zlib
from types import SimpleNamespace

from anyo_rl.reasoning.kinds.kind import Asked, Kind
from anyo_rl.reasoning.prompts import CHAT_FOOTER, TEXT_FOOTER, Words
from anyo_rl.run.settings import Bounds, check_bounds
from anyo_rl.teacher.tokens import thought_tokens

MOST = 64


def latent(n_thoughts: int = 4, any_number: bool = False) -> Kind:
    """Thoughts without words.

    Args:
        n_thoughts: how many prompts end with; a teacher may be asked with fewer than it was trained with.
        any_number: whether each training example shows a number of them between 0 and `n_thoughts`, drawn by its id,
            so that fewer are no news to the teacher.
    """
    bounds = {"n_thoughts": Bounds(0, MOST)}
    check_bounds(SimpleNamespace(n_thoughts=n_thoughts), bounds, "kind_settings of latent: ")

    def words_of(asked: Asked) -> Words:
        drawn = zlib.crc32(asked.example_id.encode()) % (n_thoughts + 1)
        return words(drawn if asked.training else n_thoughts)

    return Kind(
        "latent",
        words=words(n_thoughts),
        words_of=words_of if any_number else None,
        thoughts=thought_tokens(n_thoughts),
    )


def words(n_thoughts: int) -> Words:
    """Our words, and some thoughts behind the last of them."""
    behind = f"\n{''.join(thought_tokens(n_thoughts))}" if n_thoughts else ""
    return Words(question=CHAT_FOOTER + behind, footer=TEXT_FOOTER + behind)
