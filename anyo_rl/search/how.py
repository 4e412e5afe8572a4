"""How users are answered: by which search, of which size, and what values reasonings in it."""

from dataclasses import dataclass, field
from math import isqrt
from typing import Literal, get_args

from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.values.prm import Prm
from anyo_rl.values.prm_vllm import VllmPrm

Mode = Literal["plain", "greedy", "mixture"]  # in which validation and evaluation ask
SearchMode = Literal[Mode, "weighted_mixture", "best_of_n", "rank_fusion", "step_beam", "tree", "mcts"]
Score = Literal["certainty", "entropy", "prm", "evidence", "likelihood"]
LINE_BY_LINE: tuple[SearchMode, ...] = ("step_beam", "tree", "mcts")


@dataclass(frozen=True)
class Settings:
    """Of a search. What is `None` follows from the number of reasonings n.

    Attributes:
        score: what a reasoning so far is worth (`anyo_rl.search.values`); it never knows the target.
        prm: for `prm`, of a teacher with the same tokenizer.
        final: of step_beam, tree and mcts, whether the answer comes after the `best` reasoning alone, or is the
            `mixture` over those found, weighted by what they are worth (mcts: by visits).
        width: partial reasonings that are kept of each length; √n if `None`, rounded down.
        expand: steps drawn from each; n / width if `None`, rounded down.
        order: whether a tree is searched level by level (`breadth`), or into the best branch first (`depth`).
        least_value: a tree leaves a step that is worth less than this share of the state before it.
        exploration: c of mcts, what a rarely visited state is worth looking at.
        simulations: of mcts; n · `expand` if `None`.
        token_budget: most tokens written for one recommendation; as many as n whole reasonings may have if `None`.
        node_budget: most tree nodes of the catalog read for the values of one recommendation; no limit if `None`. What
            the answer itself takes is the ranker's to limit.
        value_nodes: most tree nodes read for one value.
        fusion_depth: places of a path's list that rank fusion looks at.
    """

    score: Score = "certainty"
    prm: Prm | VllmPrm | None = None
    final: Literal["best", "mixture"] = "mixture"
    width: int | None = None
    expand: int | None = None
    order: Literal["breadth", "depth"] = "depth"
    least_value: float = 0.5
    exploration: float = 1.0
    simulations: int | None = None
    token_budget: int | None = None
    node_budget: int | None = None
    value_nodes: int = 64
    fusion_depth: int = 100

    def __post_init__(self) -> None:
        if self.score not in get_args(Score):
            raise UsageError(f"score is {self.score!r}: expected one of {', '.join(get_args(Score))}")
        if (self.score == "prm") != (self.prm is not None):
            raise UsageError("score prm and a PRM go together: set prm to the folder of one, or take another score")
        least = {"width": 1, "expand": 1, "simulations": 1, "token_budget": 0, "node_budget": 0, "value_nodes": 1}
        for name, low in {**least, "fusion_depth": 1, "least_value": 0, "exploration": 0}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}: expected {low} or more")


@dataclass(frozen=True)
class How:
    """How users are answered.

    Attributes:
        mode: `plain` asks for the item at once; `greedy` after one greedy reasoning; `mixture` averages the item
            distributions after `sampling.n` sampled reasonings, and `weighted_mixture` does by what each is worth;
            `best_of_n` takes the one of them that is worth most;
            `rank_fusion` merges their top lists; `step_beam`, `tree` (of thoughts) and `mcts` search step by step.
        sampling: of the reasonings; a greedy one has its length alone. Searches that go step by step may write as much
            as n whole reasonings.
        top_k: items returned for each user.
        keep_paths: whether answers carry the paths; of a mixture each is then ranked alone, which costs as much again.
        settings: of the search.
        keep_found: whether answers carry what was found besides ranks: trees, items with scores, and their cost.
    """

    mode: SearchMode
    sampling: Sampling = Sampling(n=8)
    top_k: int = 20
    keep_paths: bool = True
    settings: Settings = field(default_factory=Settings)
    keep_found: bool = False

    def __post_init__(self) -> None:
        if self.mode not in SEARCHES:
            raise UsageError(f"search is {self.mode!r}: expected one of {', '.join(SEARCHES)}")

    @property
    def own_sampling(self) -> Sampling:
        """Of the mode."""
        return self.sampling.greedy() if self.mode in ("plain", "greedy") else self.sampling

    @property
    def values(self) -> bool:
        """Whether reasonings are valued on the way."""
        return self.mode in (*LINE_BY_LINE, "best_of_n", "weighted_mixture")

    @property
    def width(self) -> int:
        """Partial reasonings that are kept."""
        return self.settings.width or max(1, isqrt(self.sampling.n))

    @property
    def expand(self) -> int:
        """Steps drawn from each."""
        return self.settings.expand or max(1, self.sampling.n // self.width)

    @property
    def simulations(self) -> int:
        """Of a Monte Carlo tree search."""
        return self.settings.simulations or self.sampling.n * self.expand

    @property
    def token_budget(self) -> int:
        """Most tokens written for one recommendation."""
        told = self.settings.token_budget
        return self.own_sampling.n * self.sampling.max_new_tokens if told is None else told


SEARCHES: tuple[SearchMode, ...] = get_args(SearchMode)
