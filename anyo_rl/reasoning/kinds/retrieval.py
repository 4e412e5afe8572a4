"""`retrieval`: before it reasons a teacher reads which items others chose together with those of the history.

    Chosen together by others:
    with "Alien": "Aliens" 12x, "Predator" 7x

A line for each item, the newest first, from counts of training users (`anyo_rl.evidence.companions`): out of fold for
training examples, and without what a masked ranking leaves out. All evidence stands in the prompt, before the steps.
"""

from types import SimpleNamespace

from anyo_rl.reasoning.kinds.kind import Asked, Kind
from anyo_rl.reasoning.prompts import Section, Shown, quoted
from anyo_rl.run.settings import Bounds, check_bounds

HEADER, TAG = "Chosen together by others:", "evidence"
BOUNDS = {
    "tokens": Bounds(1, 10**6),
    "items": Bounds(1, 10**4),
    "companions": Bounds(1, 10**4),
    "fewest": Bounds(1),
}


def retrieval(tokens: int = 128, items: int = 8, companions: int = 3, fewest: int = 2) -> Kind:
    """Makes the kind.

    Args:
        tokens: budget of the lines.
        items: of how many different items of the history there are lines, the newest.
        companions: how many items a line names at most, in the order of their count over the root of their own.
        fewest: users who chose both, or an item is not named.

    Raises:
        UsageError: a number is out of its range.
    """
    told = SimpleNamespace(tokens=tokens, items=items, companions=companions, fewest=fewest)
    check_bounds(told, BOUNDS, "kind_settings of retrieval: ")

    def show(asked: Asked) -> list[Section]:
        newest = list(dict.fromkeys(reversed(asked.history)))[:items]
        lines = [_line(asked, item, companions, fewest) for item in newest]
        return [Section(HEADER, TAG, [line for line in lines if line], tokens)]

    return Kind("retrieval", show=show)


def _line(asked: Asked, item: str, companions: int, fewest: int) -> list[str | Shown]:
    """The line of an item of the history; empty where nobody else chose it with another one."""
    told = asked.sources.companions.of(
        item, asked.user_id, training=asked.training, most=companions, fewest=fewest, without=asked.excluded
    )
    named = [[*quoted(asked.shown(other)), f" {count}x"] for other, count in told]
    if not named:
        return []
    rest = [part for each in named[1:] for part in (", ", *each)]
    return ["with ", *quoted(asked.shown(item)), ": ", *named[0], *rest]
