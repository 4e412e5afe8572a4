"""What the service takes and what it answers, as JSON."""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from anyo_rl.search.how import SearchMode
from anyo_rl.search.tree import ROOT, Ending, Tree
from anyo_rl.serve.recommender import Recommended

MOST_HISTORY, MOST_K, MOST_N, MOST_NAMES = 1000, 1000, 64, 1000
MOST_NAME_CHARS = 500
MOST_LISTED = 100  # items of a search, and test users

Name = Annotated[str, StringConstraints(max_length=MOST_NAME_CHARS)]


class Asked(BaseModel):
    """A question. Items are titles or ids."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[Name] | None = Field(
        default=None, max_length=MOST_HISTORY, description="What was chosen before, oldest first."
    )
    example: Name | None = Field(default=None, description="Id of one of /examples, in place of a history.")
    k: int = Field(default=10, ge=1, le=MOST_K, description="Items, at most.")
    model: Name | None = Field(default=None, description="teacher, student, …: see /about; the first if unset.")
    search: SearchMode | None = Field(default=None, description="How a teacher looks for its answer.")
    n: int | None = Field(default=None, ge=1, le=MOST_N, description="Reasonings of a search.")
    exclude: list[Name] = Field(default_factory=list, max_length=MOST_NAMES, description="Items to leave out.")
    only: list[Name] | None = Field(default=None, max_length=MOST_NAMES, description="Items that may be recommended.")
    target: Name | None = Field(default=None, description="An item whose rank is asked for too.")
    reasons: bool = Field(default=True, description="Whether the answer tells its reasoning and its tree.")


class Item(BaseModel):
    """An item."""

    item_id: str
    title: str


class Place(Item):
    """An item in its place; the score is comparable within an answer alone."""

    rank: int
    score: float | None


class Step(BaseModel):
    """A node of a search's tree: a step, or a whole reasoning; the root, number 0, is the prompt."""

    number: int
    parent: int
    text: str
    value: float | None = Field(description="What the reasoning is worth so far, 0 to 1, where it was asked.")
    visits: int
    draws: int
    weight: float | None = Field(description="Of the answer after it in the final one; null where none comes after.")


class Target(Item):
    """The item whose rank was asked for."""

    rank: int


class Answer(BaseModel):
    """An answer: items, best first, why, and what it cost."""

    model: str
    stage: str
    search: str
    items: list[Place]
    reasons: list[str]
    target: Target | None
    n_tokens: int
    n_nodes: int | None
    seconds: float
    tree: list[Step] | None


class Example(BaseModel):
    """A test user: the history, and what was really chosen next."""

    example: str
    history: list[Item]
    target: Item


class Model(BaseModel):
    """What can be asked."""

    model: str
    stage: str
    searches: list[str]
    search: str
    n: int | None


class About(BaseModel):
    """What is served."""

    models: list[Model]
    data: str
    n_items: int
    masked: bool = Field(description="Whether rankings leave out the history.")
    most_k: int = MOST_K
    most_n: int = MOST_N
    most_history: int = MOST_HISTORY


class Health(BaseModel):
    """Whether questions are answered, and how many wait, for each model."""

    status: str
    waiting: dict[str, int]


class Problem(BaseModel):
    """What was wrong."""

    error: str


def steps_of(tree: Tree, ending: Ending) -> list[Step]:
    """The nodes of a tree, parents before children."""
    weights = dict(zip(ending.leaves, ending.weights, strict=True))
    return [
        Step(
            number=number,
            parent=node.parent,
            text="" if number == ROOT else node.text,
            value=node.value,
            visits=node.visits,
            draws=node.draws,
            weight=weights.get(number),
        )
        for number, node in enumerate(tree.nodes)
    ]


def answer_of(found: Recommended, model: tuple[str, str, str], target: Item | None, reasons: bool) -> Answer:
    """An answer as JSON has it.

    Args:
        found: the answer.
        model: who gave it: its name, its stage, and the search.
        target: whose rank was asked for.
        reasons: whether it tells its reasoning.
    """
    name, stage, search = model
    places = [
        Place(item_id=one.item_id, title=one.title, rank=one.rank, score=_finite(one.score)) for one in found.items
    ]
    aim, tree = None, None
    if target is not None and found.target_rank is not None:
        aim = Target(item_id=target.item_id, title=target.title, rank=found.target_rank)
    if reasons and found.tree is not None and found.ending is not None:
        tree = steps_of(found.tree, found.ending)
    return Answer(
        model=name,
        stage=stage,
        search=search,
        items=places,
        reasons=list(found.reasons) if reasons else [],
        target=aim,
        n_tokens=found.n_tokens,
        n_nodes=found.n_nodes,
        seconds=found.seconds,
        tree=tree,
    )


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
