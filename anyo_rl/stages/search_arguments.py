"""Settings of a search: which, how large, and by what it values reasonings."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, get_args

from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.how import LINE_BY_LINE, SEARCHES, How, Score, Settings
from anyo_rl.values.prm import Prm


@dataclass
class SearchArguments:
    """Which searches, of which sizes, and their settings."""

    search: list[str] = field(
        default_factory=lambda: list(SEARCHES), metadata={"help": f"Which searches: {', '.join(SEARCHES)}."}
    )
    n: list[int] = field(
        default_factory=lambda: [8],
        metadata={"help": "Reasonings of each search, a row of the table for each number."},
    )
    score: list[str] = field(
        default_factory=lambda: ["certainty"],
        metadata={
            "help": f"What a reasoning is worth: {', '.join(get_args(Score))}; of several, the best on validation."
        },
    )
    final: list[str] = field(
        default_factory=lambda: ["mixture"],
        metadata={
            "help": "What searches step by step answer after: the best reasoning, or the mixture of those found; of "
            "both, the better one on validation."
        },
    )
    prm: str | None = field(default=None, metadata={"help": "Folder of the PRM (prm/model of its run), for prm."})
    width: int | None = field(
        default=None, metadata={"bounds": Bounds(1, 10_000), "help": "Partial reasonings kept; √n if unset."}
    )
    expand: int | None = field(
        default=None, metadata={"bounds": Bounds(1, 10_000), "help": "Steps drawn from each; n / width if unset."}
    )
    order: Literal["breadth", "depth"] = field(
        default="depth", metadata={"help": "Order of a tree of thoughts: breadth or depth first."}
    )
    least_value: float = field(
        default=0.5,
        metadata={
            "bounds": Bounds(0, 1),
            "help": "A tree of thoughts turns back from a step worth less than this share of the state before it.",
        },
    )
    exploration: float = field(default=1.0, metadata={"bounds": Bounds(0, 1000), "help": "c of UCT in mcts."})
    simulations: int | None = field(
        default=None, metadata={"bounds": Bounds(1, 10**6), "help": "Of mcts; n · expand if unset."}
    )
    token_budget: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0),
            "help": "Most tokens written for one recommendation; what n whole reasonings may have if unset.",
        },
    )
    node_budget: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0),
            "help": "Most nodes of the catalog's tree read for one recommendation's values; no limit if unset.",
        },
    )
    value_nodes: int = field(
        default=64, metadata={"bounds": Bounds(1), "help": "Most nodes of the catalog's tree read for one value."}
    )
    temperature: float = field(
        default=1.0, metadata={"bounds": Bounds(0, 100), "help": "At which steps and reasonings are sampled."}
    )
    top_p: float = field(
        default=1.0, metadata={"bounds": Bounds(above=0, most=1), "help": "Nucleus, above 0 and up to 1."}
    )

    def __post_init__(self) -> None:
        known = {"search": SEARCHES, "score": get_args(Score), "final": ("best", "mixture")}
        for name, names in known.items():
            told = getattr(self, name)
            if not told or set(told) - set(names):
                raise UsageError(f"{name} is {' '.join(told) or 'empty'}: expected some of {', '.join(names)}")
        if not self.n or min(self.n) < 1 or max(self.n) > 10_000:
            raise UsageError(f"n is {self.n}: expected numbers from 1 to 10,000")
        if ("prm" in self.score) != (self.prm is not None):
            raise UsageError("score prm and prm go together: set prm to the folder of one, or leave both out")

    def hows(self, search: str, n: int, sampling: Sampling, prm: Prm | None) -> Iterator[How]:
        """The settings that are tried of a search; one where nothing of it is left open.

        Args:
            search: its name.
            n: reasonings.
            sampling: of these, but for their number, temperature and nucleus.
            prm: the PRM, where one is named.
        """
        values = search in (*LINE_BY_LINE, "best_of_n", "weighted_mixture")
        scores: list[Any] = self.score if values else ["certainty"]
        finals: list[Any] = self.final if search in LINE_BY_LINE else ["mixture"]
        mode: Any = search
        own: tuple[str, ...] = ("width", "expand", "order", "least_value", "exploration", "simulations")
        own += ("token_budget", "node_budget", "value_nodes")
        told = {name: getattr(self, name) for name in own}
        asked = Sampling(n, self.temperature, self.top_p, sampling.max_new_tokens, sampling.seed)
        for score, final in product(dict.fromkeys(scores), dict.fromkeys(finals)):
            settings = Settings(score=score, final=final, prm=prm if score == "prm" else None, **told)
            yield How(mode, asked, settings=settings, keep_found=True)
