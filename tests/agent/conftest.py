"""A small world of trips, and what stands in for a teacher: a sampler that writes given lines."""

from collections.abc import Sequence

import pytest

from anyo_rl.agent.planning import Planner
from anyo_rl.data.goals import Goal, GoalWorld, Offer
from anyo_rl.sampling.protocol import Sample
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens

OFFERS = (
    Offer("a", "Amber Inn", "inn", 4, ("mon",), "quiet", 5),
    Offer("b", "Birch Inn", "inn", 1, ("tue",), "old", 1),
    Offer("c", "Cedar Walk", "tour", 5, ("mon",), "quiet", 5),
    Offer("d", "Dawn Walk", "tour", 2, ("wed",), "old", 3),
)
GOAL = Goal("g", "1", "quiet", 6, ("mon", "tue", "wed"), ("inn", "tour"))


@pytest.fixture(scope="session")
def tokens() -> Tokens:
    texts = ["Traveller 1 wants inn, tour. Budget 6. Free mon tue wed.\n", "search: inn quiet 5\n= cost 4, left 2\n"]
    return Tokens.of(train_tokenizer([*texts, "profile\nplan: Amber Inn | Dawn Walk\nsimilar: x\n"] * 3, 400))


@pytest.fixture(scope="session")
def world() -> GoalWorld:
    return GoalWorld(OFFERS, {"a": ("b",), "b": ("a",)}, {"train": (GOAL,), "test": (GOAL,)})


@pytest.fixture
def planner(world, tokens) -> Planner:
    return Planner.of(world, tokens.safe_text)


class Writer:
    """Writes the same lines in every episode, the last one for ever."""

    def __init__(self, tokens: Tokens, lines: Sequence[str]) -> None:
        self.tokens, self.lines = tokens, list(lines)
        self.contexts: list[list[int]] = []

    def sample(self, *args, **kwargs):
        raise AssertionError("lines alone are asked for")

    def sample_lines(self, contexts_B, sampling, limits_B, keys_B):
        self.contexts.append(list(contexts_B[0]))
        line = self.lines[min(len(self.contexts), len(self.lines)) - 1]
        ids = self.tokens.tokenizer.encode(line, add_special_tokens=False)
        stops = {self.tokens.eos_id, self.tokens.marker_id}
        cut = next((n + 1 for n, token in enumerate(ids) if token in stops), len(ids))
        return [Sample(tuple(ids[:cut][:limit]), None, "stop" if cut <= limit else "length") for limit in limits_B]


@pytest.fixture
def writes(tokens):
    return lambda *lines: Writer(tokens, lines)
