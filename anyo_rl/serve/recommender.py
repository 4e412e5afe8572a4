"""A trained teacher, a student or evidence, to ask for items.

    from anyo_rl import Recommender

    recommender = Recommender.from_pretrained("runs/toy")
    found = recommender.recommend(["item a", "item b"], k=10, search="mixture", n=8)
    print(found.items, found.reasons)

Answers are those of `recipes/evaluate.py`: the same prompts, the same cut of long histories, the same masking.
"""

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from anyo_rl.data.names import ItemNames, named_items
from anyo_rl.data.schema import TEST, Example
from anyo_rl.data.task import Task
from anyo_rl.evaluation.stages import stage_of
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.search.how import SearchMode, Settings
from anyo_rl.search.tree import Ending, Tree
from anyo_rl.serve.answerers import Answerer, Found, OfTeacher, Watch
from anyo_rl.serve.opening import Place, data_of, find, open_answerer

MOST_PATHS = 10_000


@dataclass(frozen=True)
class Request:
    """What somebody asks for. Items are ids here.

    Attributes:
        history: what was chosen before, oldest first.
        exclude: items that are not to be recommended.
        only: the items that may be; `None` for the whole catalog.
        target: an item whose rank is asked for too: what was really chosen. Nothing else depends on it.
        name: what draws go by; the history's own fingerprint if `None`: the same question gets the same answer.
    """

    history: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    target: str | None = None
    name: str | None = None

    @property
    def key(self) -> str:
        """What draws go by."""
        told = hashlib.sha256(json.dumps(self.history).encode()).hexdigest()[:16]
        return told if self.name is None else self.name


@dataclass(frozen=True)
class RecommendedItem:
    """One item of an answer.

    Attributes:
        rank: 1-based place.
        item_id: the item.
        title: its title.
        score: of a teacher the log-probability (after rank fusion the fused score), of others their own score; higher
            is better, comparable within an answer alone.
    """

    rank: int
    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class Recommended:
    """An answer.

    Attributes:
        items: best first; fewer than asked for where there are no more.
        reasons: steps of the reasoning that weighs most; empty for what does not reason.
        target_rank: 1-based rank of the target, if one was named.
        n_tokens: tokens written.
        n_nodes: tree nodes of the catalog read; `None` where nobody counts.
        seconds: the time that the batch took, over its requests.
        tree: all that was written; `None` for what does not reason.
        ending: nodes of the tree that the answer comes after, with their weights.
    """

    items: tuple[RecommendedItem, ...]
    reasons: tuple[str, ...] = ()
    target_rank: int | None = None
    n_tokens: int = 0
    n_nodes: int | None = None
    seconds: float = 0.0
    tree: Tree | None = None
    ending: Ending | None = None

    def without_reasons(self) -> "Recommended":
        """The items and what they cost."""
        return dataclasses.replace(self, reasons=(), tree=None, ending=None)


class Recommender:
    """Answers requests; one thread at a time may ask it.

    Args:
        place: where what is asked lies.
        task: its data.
        answerer: it, opened.
        held: what closes it.
    """

    def __init__(self, place: Place, task: Task, answerer: Answerer, held: ExitStack) -> None:
        self.place, self.task, self.answerer = place, task, answerer
        self._close = weakref.finalize(self, held.close)
        items = task.interactions.items
        self.titles: dict[str, str] = dict(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))
        self.names = ItemNames(self.titles)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        stage: str | None = None,
        data_dir: Path | str | None = None,
        settings: Settings = Settings(),
        evidence: Path | str | None = None,
    ) -> "Recommender":
        """Opens a run folder of a teacher, a student or evidence; data are read as the run read them.

        Args:
            folder: the run folder, or that of a teacher or student in it.
            stage: which teacher of the run; by default the last one that was trained by reinforcement or preferences,
                else the best of what is there (`anyo_rl.evaluation.stages.ASKED_FIRST`).
            data_dir: where named data sets lie now; as the run's settings say if `None`.
            settings: of searches (docs/design.md).
            evidence: run folder of evidence that a teacher is asked together with, as the run's table has it
                (`recipes/evaluate.py --evidence`); if `None`, the evidence that it was trained with.

        Raises:
            UsageError: there is nothing to ask, or its data are not there or are others; says which, in a line.
        """
        place, held = find(Path(folder).expanduser(), stage), ExitStack()
        recorded, task = data_of(place, None if data_dir is None else str(data_dir))
        beside = None if evidence is None else Path(evidence).expanduser()
        return cls(place, task, open_answerer(place, recorded, task, settings, held, beside), held)

    def __enter__(self) -> "Recommender":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Lets go of a teacher's weights."""
        self._close()

    @property
    def searches(self) -> bool:
        """Whether it is a teacher, for which there are searches."""
        return isinstance(self.answerer, OfTeacher)

    @property
    def search(self) -> SearchMode:
        """How it is asked where nothing is said: a teacher that reasons after one greedy reasoning."""
        return stage_of(self.place.name).modes[0] if self.searches else "plain"

    @property
    def reasons(self) -> bool:
        """Whether it reasons before it answers."""
        return self.searches and stage_of(self.place.name).reasons

    @property
    def n_paths(self) -> int | None:
        """Reasonings of a search where nothing is said; `None` where nothing is searched."""
        return self.answerer.job.teacher_args.n_paths if isinstance(self.answerer, OfTeacher) else None

    def recommend(
        self,
        history: Sequence[str] | Sequence[Sequence[str]],
        k: int = 10,
        search: SearchMode | None = None,
        n: int | None = None,
        exclude: Sequence[str] = (),
        only: Sequence[str] | None = None,
        reasons: bool = True,
    ) -> "Recommended | list[Recommended]":
        """Recommends items.

        Args:
            history: titles or item ids, oldest first; a list of histories is a batch, and a list comes back.
            k: items, at most; there may be fewer than that in the catalog.
            search: how a teacher looks for its answer; as it is evaluated if `None`. Others answer at once.
            n: reasonings of a search; as the run's settings say if `None`.
            exclude: items that are not to be recommended, besides the history where the run masks that.
            only: the items that may be recommended.
            reasons: whether the answer tells its reasoning; it is the same answer without.

        Raises:
            UnknownItemError: a name that no item has, or several have; names the nearest.
            UsageError: a setting is out of its range.
        """
        if isinstance(history, str):
            raise UsageError(f"the history is {history!r}: expected a list of titles or item ids")
        batch = bool(len(history)) and not isinstance(history[0], str)
        histories: Sequence[Sequence[str]] = history if batch else [history]  # type: ignore[list-item, assignment]
        without = tuple(named_items(self.names, exclude, "exclude"))
        among = None if only is None else tuple(named_items(self.names, only, "only"))
        requests = [Request(tuple(named_items(self.names, one, "a history")), without, among) for one in histories]
        found = self.answer(requests, k, search, n)
        found = found if reasons else [one.without_reasons() for one in found]
        return found if batch else found[0]

    def answer(
        self,
        requests: Sequence[Request],
        k: int = 10,
        search: SearchMode | None = None,
        n: int | None = None,
        watch: Watch | None = None,
    ) -> list[Recommended]:
        """Answers requests at once; each gets the answer that it would get alone.

        Args:
            requests: of known items.
            k: as in `recommend`.
            search: as in `recommend`.
            n: as in `recommend`.
            watch: gets the key of a request and the steps that were just written for it.

        Raises:
            UsageError: a request or a setting cannot be answered; says why.
        """
        how = self.how(k, search, n)
        examples = {(request, request.key): self._example(request) for request in requests}
        found: dict[tuple[Request, str], Found] = {}
        while left := [asked for asked in examples if asked not in found]:
            once = list({key: (request, key) for request, key in left}.values())  # draws of a batch go by unlike keys
            answers = self.answerer.answer([examples[asked] for asked in once], how, watch)
            found |= dict(zip(once, answers, strict=True))
        return [self._recommended(found[request, request.key]) for request in requests]

    def check(self, request: Request, k: int, search: SearchMode | None, n: int | None) -> None:
        """Refuses what cannot be answered, without answering.

        Raises:
            UsageError: see `answer`.
        """
        self.how(k, search, n)
        self._example(request)

    def how(self, k: int, search: SearchMode | None, n: int | None) -> How:
        """The search; of what does not search, the number of items alone.

        Raises:
            UsageError: see `answer`.
        """
        told, asked = self.place.name, search or self.search
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UsageError(f"k is {k!r}: expected a whole number, 1 or more")
        k = min(k, len(self.titles))
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST_PATHS):
            raise UsageError(f"n is {n!r}: expected a whole number from 1 to {MOST_PATHS}")
        if not isinstance(self.answerer, OfTeacher):
            if asked != "plain":
                raise UsageError(f"search is {asked!r}, and {told} answers at once: leave search out, or take plain")
            return How("plain", top_k=k)
        job = self.answerer.job
        sampling = Sampling(n or job.teacher_args.n_paths, max_new_tokens=job.max_reasoning_tokens, seed=job.seed)
        how = How(asked, sampling, k, keep_paths=False, settings=self.answerer.settings, keep_found=True)
        if asked != "plain" and not self.reasons:
            raise UsageError(f"search is {asked!r}, and {told} learned to answer at once: leave search out")
        return how

    def examples(self, limit: int) -> list[Request]:
        """Some test users as they are evaluated, with what they really chose; drawn by the data seed."""
        rows = self.task.split(TEST, limit).select("example_id", "history", "target_id").rows()
        given = self.task.args.split == "given"  # histories as they were published
        return [
            Request(
                tuple(shown if given else self.task.past.before(example)),
                exclude=tuple(self.task.excluded(example)),
                target=target,
                name=example,
            )
            for example, shown, target in rows
        ]

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.titles)

    def _example(self, request: Request) -> Example:
        """A request as an example; what it leaves out is what a test example would, and what was asked for."""
        args = self.task.args
        if not request.history and args.min_history != 0:
            raise UsageError(
                f"the history is empty, and {self.place.name} never met one: its shortest had {args.min_history} "
                "events (min_history). Give an item at least"
            )
        masked = request.history if args.mask_history else ()
        excluded = dict.fromkeys([*masked, *request.exclude])
        if request.only is not None:
            excluded |= dict.fromkeys(sorted(self._all.difference(request.only)))
        if len(excluded) == len(self.titles):
            raise UsageError("nothing is left to recommend: exclude less, or name other items in only")
        history, target = list(request.history), request.target or ""
        return Example(request.key, "", history, target, excluded=tuple(excluded))

    def _recommended(self, found: Found) -> Recommended:
        items = tuple(
            RecommendedItem(rank, item, self.titles[item], float(score))
            for rank, (item, score) in enumerate(zip(found.item_ids, found.scores, strict=True), 1)
        )
        answer = Recommended(items, target_rank=found.target_rank or None, seconds=found.seconds)
        if (why := found.searched) is None:
            return answer
        answer = dataclasses.replace(answer, n_tokens=why.n_tokens, n_nodes=why.n_nodes)
        if why.tree.nodes[0].finished:  # it was asked at once
            return answer
        return dataclasses.replace(answer, reasons=why.steps, tree=why.tree, ending=why.ending)
