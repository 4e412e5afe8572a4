"""A world in which reasoning must help: an order of five series, changed by events that do not show it.

A user follows five series. The first five events are a `new` item of each, and their order is where the user's order
begins. From then on events are items of any of the five, whose *edition* names an operation on that order (swap the
first two, rotate, reverse, …) and nothing of the order itself. After an item in the `sale` the user buys the series at
the head of the order (with probability `fidelity`, else another of the five), in any edition. The last event is such a
purchase, and it is what is to be predicted.

Example, with the operations swap and rotate:

    tea new 2, lamp new 1, pen new 1, mug new 1, bag new 2, pen swap 1, tea rotate 1, bag sale 1 -> tea swap 1

    start: tea lamp pen mug bag
    swap: lamp tea pen mug bag
    rotate: tea pen mug bag lamp
    head: tea

A teacher of fixed depth that answers at once has to compose all operations inside one forward; that gets hard with
their number, and hopeless for operations whose products do not commute (Barrington 1989; Merrill & Sabharwal 2023,
arXiv 2207.00729). Written down one event at a time, each step is easy. `DIAL` has four settings of that difficulty.
What this shows is that mechanism. It says nothing of real users.

The history tells the order exactly, so `OrderWorld.oracle_scores` is the best that anyone can do. Rationales state the
order after each event; some are wrong from one event on, as a model's would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
import polars as pl

from anyo_rl.data.schema import Interactions
from anyo_rl.data.text import squeeze
from anyo_rl.run.settings import Bounds, check_bounds

SERIES = ("tea", "mug", "candle", "lamp", "book", "pen", "bag", "scarf", "clock", "vase", "rug", "chair")
N_FOLLOWED = 5
NEW, SALE = "new", "sale"  # editions that change nothing
# What each place holds after an operation, by the places before it.
OPERATIONS: dict[str, tuple[int, ...]] = {
    "stay": (0, 1, 2, 3, 4),
    "swap": (1, 0, 2, 3, 4),
    "rotate": (1, 2, 3, 4, 0),
    "reverse": (4, 3, 2, 1, 0),
    "flip": (0, 1, 2, 4, 3),
    "cross": (0, 3, 2, 1, 4),
}
_DAY_S = 86_400
_FIRST_DAY_S = 1_600_000_000


@dataclass(frozen=True)
class OrderConfig:
    """Everything that defines a world of orders.

    Attributes:
        n_users: users, at least 1.
        operations: which of `OPERATIONS` there are.
        min_operations: fewest of a user, at least 1.
        max_operations: most of a user; their number is uniform in between.
        n_series: series of the catalog, 5 to 12.
        n_variants: items of a series and edition, 1 to 9; variant v is bought in proportion to 1 / v.
        reveal: share of operations that are followed by a purchase, which shows the head, in [0, 1].
        fidelity: probability that a purchase is of the head, in (0, 1].
        rationale_share: share of users who have rationales, in [0, 1].
        wrong_share: share of rationales that go wrong at an event, in [0, 1].
        seed: seed of everything that is drawn.
    """

    n_users: int = 2000
    operations: tuple[str, ...] = ("stay", "swap", "rotate")
    min_operations: int = 4
    max_operations: int = 8
    n_series: int = 10
    n_variants: int = 2
    reveal: float = 0.1
    fidelity: float = 0.9
    rationale_share: float = 0.1
    wrong_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "n_users": Bounds(1),
            "min_operations": Bounds(1, self.max_operations),
            "n_series": Bounds(N_FOLLOWED, len(SERIES)),
            "n_variants": Bounds(1, 9),
            "reveal": Bounds(0, 1),
            "fidelity": Bounds(above=0, most=1),
            "rationale_share": Bounds(0, 1),
            "wrong_share": Bounds(0, 1),
        }
        check_bounds(self, bounds, "orders: ")
        if not self.operations or set(self.operations) - set(OPERATIONS):
            raise ValueError(f"orders: operations are {self.operations}, expected some of {', '.join(OPERATIONS)}")


_THREE, _FIVE = ("stay", "swap", "rotate"), ("swap", "rotate", "reverse", "flip", "cross")
# From a world that a direct answer solves to one where it stays at chance: operations, and how many at least and most.
DIAL: dict[int, tuple[tuple[str, ...], int, int]] = {
    1: (_THREE, 2, 6),
    2: (_THREE, 4, 16),
    3: (_FIVE, 4, 16),
    4: (_FIVE, 8, 24),
}


def order_config(dial: int, **settings: object) -> OrderConfig:
    """The world of a setting of the dial.

    Raises:
        ValueError: there is no such setting, or another is out of its range.
    """
    if dial not in DIAL:
        raise ValueError(f"the dial is at {dial}, expected one of {', '.join(map(str, DIAL))}")
    operations, least, most = DIAL[dial]
    return OrderConfig(operations=operations, min_operations=least, max_operations=most, **settings)  # type: ignore[arg-type]


Order = tuple[str, ...]
Event = tuple[str, str]  # series and edition


def apply(operation: str, order: Order) -> Order:
    """The order after an operation.

    >>> apply("rotate", ("tea", "lamp", "pen", "mug", "bag"))
    ('lamp', 'pen', 'mug', 'bag', 'tea')
    """
    return tuple(order[place] for place in OPERATIONS[operation])


@dataclass(frozen=True)
class OrderWorld:
    """A generated world. Item index = row of `interactions.items`; position = number of an event of a user, from 0."""

    config: OrderConfig
    interactions: Interactions
    item_ids: list[str]
    index: dict[str, int]
    _events: dict[str, list[Event]] = field(repr=False)
    _wrong: dict[str, tuple[int, int]] = field(repr=False)  # user → the operation that goes wrong, and a draw
    _rationale_users: frozenset[str] = field(repr=False)

    least_history = N_FOLLOWED + 1  # the order has been shown
    state_lines = ("start:", *(f"{operation}:" for operation in OPERATIONS), "head:")  # how lines of a state begin

    @cached_property
    def longest(self) -> int:
        """Events of the user who has most."""
        return max(map(len, self._events.values()))

    def order(self, user_id: str, position: int) -> Order:
        """The user's order before the event at a position; of fewer than five series while it is being shown."""
        return follow(self._events[user_id][:position])

    def has_rationale(self, user_id: str) -> bool:
        """Whether this user is one of the `rationale_share` of users whose rationales were bought."""
        return user_id in self._rationale_users

    def true_rationale(self, user_id: str, position: int) -> tuple[str, ...]:
        """The order after each operation before a position, and its head: the truth, one step per entry.

        Raises:
            ValueError: the order has not been shown yet.
        """
        return self._rationale(self._events[user_id][:position])

    def rationale(self, user_id: str, position: int) -> tuple[str, ...]:
        """The rationale that was bought: the true one, or one that takes an operation for another and goes on so.

        Raises:
            ValueError: the order has not been shown yet.
        """
        events = self._events[user_id][:position]
        places = [place for place, (_, edition) in enumerate(events) if edition in OPERATIONS]
        if user_id not in self._wrong or not places:
            return self._rationale(events)
        at, draw = self._wrong[user_id]
        place = places[at % len(places)]
        series, edition = events[place]
        others = [operation for operation in self.config.operations if operation != edition]
        if others:
            events = [*events[:place], (series, others[draw % len(others)]), *events[place + 1 :]]
        return self._rationale(events)

    def _rationale(self, events: Sequence[Event]) -> tuple[str, ...]:
        if len(events) < N_FOLLOWED:
            raise ValueError(f"a rationale needs a history of {N_FOLLOWED} events or more, found {len(events)}")
        order = follow(events[:N_FOLLOWED])
        steps = [f"start: {' '.join(order)}"]
        for _, edition in events[N_FOLLOWED:]:
            if edition in OPERATIONS:
                order = apply(edition, order)
                steps.append(f"{edition}: {' '.join(order)}")
        return (*steps, f"head: {order[0]}")

    def intent(self, user_id: str, position: int) -> str:
        """What is truly wanted at a position: the series at the head of the order."""
        return self.order(user_id, position)[0]

    def states_intent(self, steps: Sequence[str]) -> bool:
        """Whether steps state a head, once."""
        return _head(steps) is not None

    def is_true(self, steps: Sequence[str], user_id: str, position: int) -> bool:
        """Whether the head that steps state is the true one; False where they state none."""
        return _head(steps) == self.order(user_id, position)[0]

    def true_steps(self, steps: Sequence[str], user_id: str, position: int) -> list[bool]:
        """For each step, whether it is the line of the true rationale at its place (up to blanks and case)."""
        truth = self.true_rationale(user_id, position)
        return [n < len(truth) and squeeze(step) == truth[n] for n, step in enumerate(steps)]

    def stated_probability(self, steps: Sequence[str], history: Sequence[int], start: int = 0) -> float:
        """1 where the head that steps state is the true one, else 0: the history tells it.

        Raises:
            ValueError: the history is cut, so that the order is not known.
        """
        self._check_whole([history], [start])
        return float(_head(steps) == follow([self._event_of_item[item] for item in history])[0])

    def oracle_scores(self, histories: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> np.ndarray:
        """The exact distribution of a purchase given each history, shape (B, N), float64, rows sum to 1.

        Args:
            histories: item indexes, oldest first, with the five that show the order.
            starts: position of each history's first event; all have to be 0.

        Raises:
            ValueError: a history is cut, so that the order is not known.
        """
        self._check_whole(histories, starts or ())
        events = self._event_of_item
        return np.array([self._purchase(follow([events[item] for item in history])) for history in histories])

    def intent_scores(self, user_ids: Sequence[str], positions: Sequence[int]) -> np.ndarray:
        """The distribution, shape (B, N), of one who knows the order; the same, since histories tell it."""
        return np.array([self._purchase(self.order(user, at)) for user, at in zip(user_ids, positions, strict=True)])

    @staticmethod
    def _check_whole(histories: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        if any(starts) or any(len(history) < N_FOLLOWED for history in histories):
            raise ValueError("the order is known from whole histories alone: raise max_history")

    def _purchase(self, order: Order) -> np.ndarray:
        scores, others = np.zeros(len(self.item_ids)), (1 - self.config.fidelity) / (N_FOLLOWED - 1)
        bought = np.concatenate([np.zeros(2), np.ones(len(self.config.operations))]) / len(self.config.operations)
        of_series = np.outer(bought, _variant_probabilities(self.config.n_variants)).ravel()
        for place, series in enumerate(order):
            first = SERIES.index(series) * len(of_series)
            scores[first : first + len(of_series)] = of_series * (self.config.fidelity if place == 0 else others)
        return scores

    @cached_property
    def _event_of_item(self) -> list[Event]:
        return self.interactions.items.select("series", "edition").rows()


def follow(events: Sequence[Event]) -> Order:
    """The order after events, of which the first five show it; new items and those in the sale leave it as it is."""
    order = tuple(series for series, _ in events[:N_FOLLOWED])
    for _, edition in events[N_FOLLOWED:]:
        order = apply(edition, order) if edition in OPERATIONS else order
    return order


def make_order_world(config: OrderConfig) -> OrderWorld:
    """Generates a world; the same config always gives the same one, and a smaller one has the same first users."""
    items = _items(config)
    item_ids = items["item_id"].to_list()
    ids = {row[:3]: row[3] for row in items.select("series", "edition", "variant", "item_id").iter_rows()}
    width = len(str(config.n_users - 1))
    variants = _variant_probabilities(config.n_variants)
    events: dict[str, list[Event]] = {}
    wrong: dict[str, tuple[int, int]] = {}
    bought: list[str] = []
    times: list[np.ndarray] = []
    for user in range(config.n_users):
        rng = np.random.default_rng([config.seed, user, 7])
        name = f"u{user:0{width}d}"
        order: Order = tuple(SERIES[n] for n in rng.permutation(config.n_series)[:N_FOLLOWED])
        seen = events[name] = [(series, NEW) for series in order]
        n_operations = int(rng.integers(config.min_operations, config.max_operations + 1))
        for number in range(n_operations):
            # A purchase has an edition too, and changes the order like any other event.
            edition = config.operations[int(rng.integers(len(config.operations)))]
            seen.append((order[int(rng.integers(N_FOLLOWED))], edition))
            order = apply(edition, order)
            if number == n_operations - 1 or rng.random() < config.reveal:
                seen.append((order[int(rng.integers(N_FOLLOWED))], SALE))
                place = 0 if rng.random() < config.fidelity else 1 + int(rng.integers(N_FOLLOWED - 1))
                edition = config.operations[int(rng.integers(len(config.operations)))]
                seen.append((order[place], edition))
                order = apply(edition, order)
        bought += [ids[series, edition, 1 + int(rng.choice(len(variants), p=variants))] for series, edition in seen]
        if rng.random() < config.wrong_share:
            wrong[name] = int(rng.integers(1 << 16)), int(rng.integers(1 << 16))
        times.append(_FIRST_DAY_S + int(rng.integers(365 * _DAY_S)) + _DAY_S * np.arange(len(seen)))
    frame = pl.DataFrame(
        {
            "user_id": [user for user, of_user in events.items() for _ in of_user],
            "item_id": bought,
            "timestamp": np.concatenate(times),
        },
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
    )
    report = {"users": config.n_users, "items": len(item_ids), "events": len(frame)}
    drawn = np.random.default_rng([config.seed, 0, 8]).permutation(list(events))
    return OrderWorld(
        config=config,
        interactions=Interactions(frame=frame, items=items, report=report, name="toy-orders"),
        item_ids=item_ids,
        index={item_id: index for index, item_id in enumerate(item_ids)},
        _events=events,
        _wrong=wrong,
        _rationale_users=frozenset(drawn[: round(config.rationale_share * config.n_users)].tolist()),
    )


def _items(config: OrderConfig) -> pl.DataFrame:
    named = list(product(SERIES[: config.n_series], (NEW, SALE, *config.operations), range(1, config.n_variants + 1)))
    width = len(str(len(named) - 1))
    return pl.DataFrame(
        {
            "item_id": [f"i{n:0{width}d}" for n in range(len(named))],
            "title": [f"{series} {edition} {variant}" for series, edition, variant in named],
            "series": [series for series, _, _ in named],
            "edition": [edition for _, edition, _ in named],
            "variant": [variant for _, _, variant in named],
        }
    )


def _variant_probabilities(n_variants: int) -> np.ndarray:
    weights = 1 / np.arange(1, n_variants + 1)
    return weights / weights.sum()


def _head(steps: Sequence[str]) -> str | None:
    """The series in the one line `head: series`; `None` where there is none, or more than one."""
    found = [squeeze(step)[len("head: ") :] for step in steps if squeeze(step).startswith("head: ")]
    return found[0] if len(found) == 1 and found[0] in SERIES else None
