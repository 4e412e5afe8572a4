"""A small world with a known answer: hidden routines, readable items, true rationales, exact oracles.

Items are categories x styles x grades with titles such as "lamp oak 3" (`TITLE`). A user follows a hidden routine
(`anyo_rl.data.toy.routines`): two categories in runs of one or two events, or three in turn, for ever. In each the
grade begins at the user's start (1, unless `n_starts` allows others), rises by the user's own climb at each event of
that category, and goes round after the top grade. The style is the favourite with probability `style_fidelity`, else
one of the others. With probability `noise` the event is replaced by an item drawn uniformly from the catalog; the
routine goes on as if nothing had happened, and so does the grade.

Example, without noise, for the routine "tea x2, lamp", start 1, climb 3, 8 grades, and the favourite style oak:

    tea oak 1, tea moss 4, lamp oak 1, tea oak 7, tea oak 2, lamp oak 4, tea oak 5, ...

Because the world is known, `ToyWorld.oracle_scores` is the best that anyone can do from the visible history and
`ToyWorld.intent_scores` the best of one who knows the intent; `anyo_rl.data.toy.oracle` has the arithmetic. Users buy
the same item again when a grade wraps, so evaluate this world without history masking.

Rationales are what a strong model would write: they state the true hidden state before the event, and never look at
the event itself. They exist from position `LONGEST_LAP` on, where every place of the routine has been visited, and one
of them twice, which shows the climb (noise may hide an event: the rationale then still tells the truth).

A world is a function of its config alone, and the events of a user depend on the seed and the user's number, not on
`n_users`: a smaller world has the same first users (but fewer digits in their ids, and its own draw of who has
rationales).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from anyo_rl.data.schema import Interactions
from anyo_rl.data.text import squeeze
from anyo_rl.data.toy import oracle as toy_oracle
from anyo_rl.data.toy.routines import LONGEST_LAP, RoutineTable, routine_table
from anyo_rl.run.settings import Bounds, check_bounds

# In the order of the ring of complements: after tea a mug, after a lamp a book.
CATEGORIES = ("tea", "mug", "candle", "lamp", "book", "pen", "bag", "scarf", "clock", "vase", "rug", "chair")
STYLES = ("oak", "blue", "linen", "steel", "coral", "ivory", "moss")
MAX_GRADES = 9
TITLE = "{category} {style} {grade}"

_DAY_S = 86_400
_FIRST_DAY_S = 1_600_000_000


@dataclass(frozen=True)
class ToyConfig:
    """Everything that defines a toy world.

    Attributes:
        n_users: users, at least 1.
        min_events: fewest events of a user.
        max_events: most events of a user; the length is uniform in between.
        n_categories: 3 to 12 categories.
        n_styles: 2 to 7 styles.
        n_grades: 2 to 9 grades.
        n_starts: how many grades a user may start at, from grade 1 up: 1 to n_grades; more hide more.
        noise: share of events replaced by an item drawn uniformly from the catalog, in [0, 1].
        style_fidelity: probability of the favourite style, in [0, 1].
        rationale_share: share of users who have rationales, in [0, 1].
        seed: seed of everything that is drawn.
    """

    n_users: int = 2000
    min_events: int = 9
    max_events: int = 16
    n_categories: int = 9
    n_styles: int = 7
    n_grades: int = 8
    n_starts: int = 1
    noise: float = 0.1
    style_fidelity: float = 0.7
    rationale_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "n_users": Bounds(1),
            "min_events": Bounds(1, self.max_events),
            "n_categories": Bounds(3, len(CATEGORIES)),
            "n_styles": Bounds(2, len(STYLES)),
            "n_grades": Bounds(2, MAX_GRADES),
            "n_starts": Bounds(1, self.n_grades),
            "noise": Bounds(0, 1),
            "style_fidelity": Bounds(0, 1),
            "rationale_share": Bounds(0, 1),
        }
        check_bounds(self, bounds, "toy world: ")


@dataclass(frozen=True)
class Intent:
    """What a user truly wants at one position, whatever was bought there.

    Attributes:
        category: wanted category.
        grade: wanted grade, from "1".
        style: the user's favourite style.
        previous_category: wanted category of the position before; None at the first.
        previous_grade: last wanted grade of the same category; None at its first visit.
        climb: by how much the user's grades rise.
        run_index: number of this event in its run, from 1.
        run_length: length of this run, 1 or 2.
    """

    category: str
    grade: str
    style: str
    previous_category: str | None
    previous_grade: str | None
    climb: str
    run_index: int
    run_length: int


@dataclass(frozen=True)
class StatedIntent:
    """The next event that a reasoning names; read by `parse_intent`."""

    category: str
    grade: str
    style: str


@dataclass(frozen=True)
class ToyWorld:
    """A generated world. Item index = row of `interactions.items`; position = number of an event of a user, from 0."""

    config: ToyConfig
    interactions: Interactions
    item_ids: list[str]
    index: dict[str, int]
    _table: RoutineTable = field(repr=False)
    _users: dict[str, int] = field(repr=False)
    _routine_U: np.ndarray = field(repr=False)
    _favourite_U: np.ndarray = field(repr=False)
    _noise_U_T: np.ndarray = field(repr=False)
    _rationale_U: np.ndarray = field(repr=False)

    least_history = LONGEST_LAP  # a rationale needs as many events
    state_lines = ("next:", "grade:", "style:")  # how lines of an intent begin

    def truth(self, user_id: str, position: int) -> Intent:
        """The true intent at `position` (0 to `max_events`, so also the event after the last).

        Raises:
            KeyError: if the user is not in the world.
            IndexError: if the position is not covered.
        """
        user = self._users[user_id]
        routine = self._routine_U[user]
        if not 0 <= position < self._table.n_positions:
            raise IndexError(f"position {position} of {user_id}, expected 0 to {self._table.n_positions - 1}")
        categories = self._table.category_R_T[routine]
        grades = self._table.grade_R_T[routine]
        earlier = [t for t in range(position) if categories[t] == categories[position]]
        return Intent(
            category=CATEGORIES[categories[position]],
            grade=str(grades[position] + 1),
            style=STYLES[self._favourite_U[user]],
            previous_category=CATEGORIES[categories[position - 1]] if position else None,
            previous_grade=str(grades[earlier[-1]] + 1) if earlier else None,
            climb=str(self._table.routines[routine].climb),
            run_index=int(self._table.run_index_R_T[routine, position]),
            run_length=int(self._table.run_length_R_T[routine, position]),
        )

    def is_noise(self, user_id: str, position: int) -> bool:
        """Whether the event bought at `position` was replaced by a random item."""
        return bool(self._noise_U_T[self._users[user_id], position])

    def has_rationale(self, user_id: str) -> bool:
        """Whether this user is one of the `rationale_share` of users whose rationales were bought."""
        return bool(self._rationale_U[self._users[user_id]])

    def rationale(self, user_id: str, position: int) -> tuple[str, ...]:
        """The true reasoning before the event at `position`, one step per entry (for any user).

        What was bought of late (category and grade of the last `LONGEST_LAP` events, noise and all), how the grades
        climb, the category wanted now, the last grade that was wanted of it and the next one, and the favourite
        style.

        Raises:
            ValueError: below `LONGEST_LAP`, where the history may not have shown the whole routine yet.
        """
        if position < LONGEST_LAP:
            raise ValueError(
                f"rationale of {user_id} asked at position {position}, expected {LONGEST_LAP} or more: "
                "a routine may not have been seen once before that"
            )
        wanted = self.truth(user_id, position)
        assert wanted.previous_grade is not None, "every place has been visited"
        return (
            f"recent: {', '.join(self._bought[user_id][max(0, position - LONGEST_LAP) : position])}",
            f"climb: {wanted.climb}",
            f"next: {wanted.category}",
            f"grade: {wanted.category} {wanted.previous_grade} then {wanted.grade}",
            f"style: {wanted.style}",
        )

    def intent(self, user_id: str, position: int) -> str:
        """What is truly wanted at a position: category, grade and favourite style."""
        wanted = self.truth(user_id, position)
        return f"{wanted.category} {wanted.grade}, {wanted.style}"

    @cached_property
    def _bought(self) -> dict[str, list[str]]:
        """Category and grade of each event of each user, as rationales name them."""
        name = pl.concat_str("category", "grade", separator=" ")
        events = self.interactions.frame.join(self.interactions.items, on="item_id", maintain_order="left")
        return dict(events.group_by("user_id", maintain_order=True).agg(name.alias("bought")).iter_rows())

    def states_intent(self, steps: Sequence[str]) -> bool:
        """Whether steps state one intent; see `parse_intent`."""
        return parse_intent(steps) is not None

    def is_true(self, steps: Sequence[str], user_id: str, position: int) -> bool:
        """Whether the steps state the true next category, grade and favourite style; False where they state none."""
        wanted = self.truth(user_id, position)
        return parse_intent(steps) == StatedIntent(wanted.category, wanted.grade, wanted.style)

    def true_steps(self, steps: Sequence[str], user_id: str, position: int) -> list[bool]:
        """For each step, whether it is a line of the true rationale (up to blanks and case), in any order."""
        truth = {squeeze(line) for line in self.rationale(user_id, position)}
        return [squeeze(step) in truth for step in steps]

    def stated_probability(self, steps: Sequence[str], history: Sequence[int], start: int = 0) -> float:
        """How probable the intent that steps state is, given the visible history alone; see `intent_probability`.

        Raises:
            ValueError: the steps state none.
        """
        intent = parse_intent(steps)
        if intent is None:
            raise ValueError(f"found no intent in {list(steps)!r}, expected one")
        return float(self.intent_probability([intent], [history], [start])[0])

    def oracle_scores(self, histories: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> np.ndarray:
        """The exact predictive distribution given each visible history, shape (B, N), float64, rows sum to 1.

        Args:
            histories: item indexes, oldest first; may be empty.
            starts: position of each history's first event; None means that all histories are whole. A truncated
                history passed as whole gets a wrong answer: which place comes first is part of what is known.

        Raises:
            ValueError: if a history is longer than the world allows or has probability 0.
        """
        rows = [self._predictive(*known).ravel() for known in self._posteriors(histories, starts)]
        return np.array(rows).reshape(len(rows), len(self.item_ids))

    def intent_probability(
        self, intents: Sequence[StatedIntent], histories: Sequence[Sequence[int]], starts: Sequence[int] | None = None
    ) -> np.ndarray:
        """How probable it is that each intent is the true one, given the visible history alone: shape (B,).

        Nobody who sees no more than the history can tell true intents from false ones better than by this number.
        Arguments and errors as those of `oracle_scores`; an intent that this world does not have has probability 0.
        """
        found = []
        for intent, known in zip(intents, self._posteriors(histories, starts), strict=True):
            p_C_S_G = toy_oracle.wanted_intents(self._table, *known)
            place = CATEGORIES.index(intent.category), STYLES.index(intent.style), int(intent.grade) - 1
            inside = all(0 <= at < size for at, size in zip(place, p_C_S_G.shape, strict=True))
            found.append(float(p_C_S_G[place]) if inside else 0.0)
        return np.array(found)

    def _posteriors(
        self, histories: Sequence[Sequence[int]], starts: Sequence[int] | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each history what each routine wants next, and the posterior over routines and favourite styles."""
        starts = [0] * len(histories) if starts is None else starts
        toy_oracle.check_windows([len(history) for history in histories], starts, self._table.n_positions)
        config = self.config
        rates = {"noise": config.noise, "style_fidelity": config.style_fidelity}
        for history, start in zip(histories, starts, strict=True):
            events_T_3 = _events(history, config)
            posterior = toy_oracle.routine_posterior(
                self._table, events_T_3, n_styles=config.n_styles, start=start, **rates
            )
            yield self._table.wanted_T_R[start + len(history)], posterior

    def intent_scores(self, user_ids: Sequence[str], positions: Sequence[int]) -> np.ndarray:
        """The distribution, shape (B, N), of one who knows the routine and the favourite style."""
        rows = []
        for user_id, position in zip(user_ids, positions, strict=True):
            user = self._users[user_id]
            favourite_1_S = np.eye(self.config.n_styles)[[self._favourite_U[user]]]
            wanted_1 = self._table.wanted_T_R[position, [self._routine_U[user]]]
            rows.append(self._predictive(wanted_1, favourite_1_S).ravel())
        return np.array(rows).reshape(len(rows), len(self.item_ids))

    def _predictive(self, wanted_K: np.ndarray, weights_K_S: np.ndarray) -> np.ndarray:
        noise, fidelity = self.config.noise, self.config.style_fidelity
        return toy_oracle.predictive(self._table, wanted_K, weights_K_S, noise=noise, style_fidelity=fidelity)


def make_toy_world(config: ToyConfig | None = None) -> ToyWorld:
    """Generate the world of `config` (the default one for None); the same config always gives the same world."""
    config = config or ToyConfig()
    table = routine_table(config.n_categories, config.n_grades, config.max_events + 1, config.n_starts)
    items = _items(config)
    item_ids = items["item_id"].to_list()
    width = len(str(config.n_users - 1))
    user_ids = [f"u{user:0{width}d}" for user in range(config.n_users)]

    routine_U = np.zeros(config.n_users, dtype=np.int64)
    favourite_U = np.zeros(config.n_users, dtype=np.int64)
    noise_U_T = np.zeros((config.n_users, config.max_events), dtype=bool)
    style_cdf = np.cumsum(toy_oracle.style_probabilities(config.n_styles, config.style_fidelity), axis=1)
    prior_cdf = np.cumsum(table.prior_R)
    bought, times, n_events_U = [], [], []
    for user in range(config.n_users):
        rng = np.random.default_rng([config.seed, user])
        n_events = int(rng.integers(config.min_events, config.max_events + 1))
        routine = _draw(prior_cdf, rng.random())
        favourite = int(rng.integers(config.n_styles))
        styles = _draw(style_cdf[favourite], rng.random(n_events))
        noise = rng.random(n_events) < config.noise
        category, grade = table.category_R_T[routine, :n_events], table.grade_R_T[routine, :n_events]
        wanted = (category.astype(np.int64) * config.n_styles + styles) * config.n_grades + grade
        bought.append(np.where(noise, rng.integers(len(item_ids), size=n_events), wanted))
        first = _FIRST_DAY_S + int(rng.integers(365 * _DAY_S))
        times.append(first + np.cumsum(rng.integers(_DAY_S // 24, 4 * _DAY_S, size=n_events)))
        routine_U[user], favourite_U[user], noise_U_T[user, :n_events] = routine, favourite, noise
        n_events_U.append(n_events)

    item_id = np.array(item_ids)[np.concatenate(bought)]
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(np.array(user_ids), n_events_U),
            "item_id": item_id,
            "timestamp": np.concatenate(times),
        },
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
    )
    report = {"users": config.n_users, "items": len(item_ids), "events": len(frame)}
    order = np.random.default_rng([config.seed, 0, 1]).permutation(config.n_users)
    rationale_U = np.zeros(config.n_users, dtype=bool)
    rationale_U[order[: round(config.rationale_share * config.n_users)]] = True
    return ToyWorld(
        config=config,
        interactions=Interactions(frame=frame, items=items, report=report, name="toy"),
        item_ids=item_ids,
        index={item_id: index for index, item_id in enumerate(item_ids)},
        _table=table,
        _users={user_id: user for user, user_id in enumerate(user_ids)},
        _routine_U=routine_U,
        _favourite_U=favourite_U,
        _noise_U_T=noise_U_T,
        _rationale_U=rationale_U,
    )


def parse_intent(steps: Sequence[str]) -> StatedIntent | None:
    """Read the next category, grade and style from steps that may be garbled, in any order.

    Returns None unless exactly one "next:", one "grade:" and one "style:" line are there and well formed: a reasoning
    that says two things does not state one intent.

    >>> parse_intent(["next: book", "grade: book 2 then 3", "style: oak"])
    StatedIntent(category='book', grade='3', style='oak')
    >>> parse_intent(["next: book", "next: tea", "grade: 2 then 3", "style: oak"]) is None
    True
    """
    lines: dict[str, list[str]] = {"next": [], "grade": [], "style": []}
    for step in steps:
        key, colon, value = squeeze(step).partition(": ")
        if colon and key in lines:
            lines[key].append(value)
    if any(len(values) != 1 for values in lines.values()):
        return None
    category, style = lines["next"][0], lines["style"][0]
    grade = re.fullmatch(r"(?:[a-z]+ \d )?then (\d)", lines["grade"][0])
    if category not in CATEGORIES or style not in STYLES or grade is None:
        return None
    return StatedIntent(category, grade.group(1), style)


def _items(config: ToyConfig) -> pl.DataFrame:
    rows = [
        {
            "title": TITLE.format(category=category, style=style, grade=grade),
            "category": category,
            "style": style,
            "grade": str(grade),
        }
        for category in CATEGORIES[: config.n_categories]
        for style in STYLES[: config.n_styles]
        for grade in range(1, config.n_grades + 1)
    ]
    width = len(str(len(rows) - 1))
    return pl.DataFrame([{"item_id": f"i{index:0{width}d}", **row} for index, row in enumerate(rows)])


def _events(history: Sequence[int], config: ToyConfig) -> np.ndarray:
    """Item indexes as (category, grade, style) rows, shape (T, 3)."""
    items_T = np.asarray(history, dtype=np.int64)
    n_items = config.n_categories * config.n_styles * config.n_grades
    if items_T.size and not (items_T.min() >= 0 and items_T.max() < n_items):
        raise ValueError(f"item indexes from {items_T.min()} to {items_T.max()}, expected 0 to {n_items - 1}")
    category, rest = np.divmod(items_T, config.n_styles * config.n_grades)
    style, grade = np.divmod(rest, config.n_grades)
    return np.stack([category, grade, style], axis=-1).reshape(-1, 3)


def _draw(cdf: np.ndarray, uniform: float | np.ndarray) -> np.ndarray:
    # The last sum may fall short of 1 by rounding, and the draw must not fall off the end.
    return np.minimum(np.searchsorted(cdf, uniform, side="right"), len(cdf) - 1)
