"""Candidates put in another order by a teacher: list by list, in sliding windows, or item by item.

The rest of the catalog stays behind the candidates as it came in, so that a rank among candidates is one among the
whole catalog.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.completion import MARKER, parse
from anyo_rl.data.schema import EXAMPLE_ID, TARGET_ID
from anyo_rl.data.task import Task
from anyo_rl.evidence.candidates import NONE, Items, places
from anyo_rl.evidence.fusion import SAME_TOP
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.order import Order, read_order, windows
from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.kinds.candidates import YES, Question
from anyo_rl.reasoning.kinds.questions import Candidates, GivenQuestions, LikedQuestions, OrderQuestions, shown_order
from anyo_rl.reasoning.rows import Row, Rows
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sample, Sampler, Sampling
from anyo_rl.sampling.ranked import as_paths
from anyo_rl.search.answers import Answers, How, reasoned

MARGIN_TOKENS = 8  # of a written order, beyond those of a well-formed one


@dataclass
class Reranked:
    """What a teacher made of the candidates of R examples.

    Attributes:
        items_R_K: item indices, the best first, `NONE` where there are fewer.
        contexts_R_G: token ids up to the marker, of the prompt that was asked last: that of the first candidates.
        texts_R_G: the reasonings after it.
        paths: the same as paths, without items and ranks.
        orders: how written orders were read, of all prompts.
        as_it_came: of each list that was asked about, whether it stayed as it was shown.
    """

    items_R_K: Items
    contexts_R_G: list[list[list[int]]]
    texts_R_G: list[list[str]]
    paths: list[list[SampledPath]]
    orders: list[Order] = field(default_factory=list)
    as_it_came: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, incoming_R: Sequence[Sequence[int]], width: int) -> "Reranked":
        """Candidates as they come in, with nothing asked."""
        items_R_K = np.full((len(incoming_R), width), NONE, dtype=np.int32)
        for row, items in enumerate(incoming_R):
            items_R_K[row, : len(items)] = items
        rows = range(len(incoming_R))
        return cls(items_R_K, [[] for _ in rows], [[] for _ in rows], [[] for _ in rows])


@dataclass(frozen=True)
class _Asked:
    """A row that was asked, its reasonings, the contexts behind their markers, and the orders written there."""

    row: Row
    samples: Sequence[Sample]
    marked: list[list[int]]
    written: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reranker:
    """A teacher that is asked about candidates.

    Attributes:
        task: the data.
        teacher: the teacher, with its answers.
        asking: how it is asked.
        sampler: of reasonings, on the same weights.
        how: with or without reasoning.
        writer: writes orders on behind the marker, on the same weights; `None` reads them off the probabilities of
            the first number, by one forward (FIRST).
    """

    task: Task
    teacher: Teacher
    asking: Asking
    sampler: Sampler
    how: How
    writer: Sampler | None = None

    @property
    def candidates(self) -> Candidates:
        """Of any example."""
        questions = self.asking.questions
        assert isinstance(questions, OrderQuestions | LikedQuestions), "teachers are asked about candidates"
        return questions.candidates

    @property
    def engine(self) -> LikelihoodRanker:
        """Reads answers off."""
        return LikelihoodRanker(self.teacher.answers, self.teacher.model, tie_band=0.0)

    def ids(self, places_R: NDArray[np.int64]) -> list[str]:
        """Ids of examples by their row numbers."""
        found: list[str] = self.task.examples[EXAMPLE_ID].gather(places_R).to_list()
        return found

    def rerank(self, places_R: NDArray[np.int64]) -> Reranked:
        """Puts the candidates of examples in order.

        Args:
            places_R: their row numbers in `task.examples`.
        """
        ids, index = self.ids(places_R), self.teacher.catalog.index
        self.candidates.ask_for(ids)
        incoming_R = [[index[item] for item in self.candidates.of(example)[0]] for example in ids]
        found = Reranked.of(incoming_R, self.asking.listed.n_candidates)
        if isinstance(self.asking.questions, LikedQuestions):
            self._one_by_one(places_R, found)
        else:
            self._in_windows(places_R, found)
        return found

    def _in_windows(self, places_R: NDArray[np.int64], found: Reranked) -> None:
        listed, items, ids = self.asking.listed, self.teacher.catalog.item_ids, self.ids(places_R)
        n_R = (found.items_R_K != NONE).sum(axis=1).tolist()
        windows_R = [windows(n, listed.window, listed.stride) for n in n_R]
        for turn in range(max(map(len, windows_R), default=0)):
            rows = [row for row, of_row in enumerate(windows_R) if turn < len(of_row)]
            shown, questions = [], {}
            for row in rows:
                window = windows_R[row][turn]
                order = shown_order(self.candidates, ids[row], len(window), turn)
                shown.append(found.items_R_K[row, window.start + np.array(order)])
                named = tuple(items[item] for item in shown[-1])
                score = dict(zip(*self.candidates.of(ids[row]), strict=True)) if listed.scores else {}
                questions[ids[row]] = Question(named, scores=tuple(score[item] for item in named) if score else ())
            asked = self._ask(places_R[rows], questions)
            for row, of_row, places_K in zip(rows, shown, self._orders(asked, found), strict=True):
                window = windows_R[row][turn]
                found.items_R_K[row, window.start : window.stop] = of_row[places_K]
            last = {row: one for row, one in zip(rows, asked, strict=True) if turn == len(windows_R[row]) - 1}
            self._keep(found, last)

    def _orders(self, asked: Sequence[_Asked], found: Reranked) -> list[list[int]]:
        """The order of the candidates that each was asked about, as places among them."""
        marked, sizes = [one.marked for one in asked], [len(one.row.listed) for one in asked]
        if self.writer is None:
            log_p = self.engine.log_probs_of(marked, [range(size) for size in sizes])
            orders = [np.argsort(-of_one, kind="stable").tolist() for of_one in log_p]
        else:
            texts = iter(self._write(self.writer, [context for of_row in marked for context in of_row]))
            orders = []
            for one, size in zip(asked, sizes, strict=True):
                one.written.extend(next(texts) for _ in one.marked)
                read = [read_order(parse(text).item, size) for text in one.written]
                found.orders += read
                orders.append(mean_order(read))
        found.as_it_came += [order == list(range(len(order))) for order in orders if len(order) > 1]
        return orders

    def _write(self, writer: Sampler, contexts: Sequence[Sequence[int]]) -> list[str]:
        """What is written on behind the marker, with it, greedily."""
        tokens, n = self.teacher.tokens, self.asking.listed.width
        most = len(tokens.item_ids(" > ".join([f"[{n}]"] * n))) + MARGIN_TOKENS
        written = writer.sample(contexts, Sampling(max_new_tokens=most).greedy())
        return [tokens.decode([tokens.marker_id, *sample.token_ids]) for (sample,) in written]

    def _one_by_one(self, places_R: NDArray[np.int64], found: Reranked) -> None:
        items, there_R_K = self.teacher.catalog.item_ids, found.items_R_K != NONE
        log_p_R_K = np.full(there_R_K.shape, -np.inf)
        for k in reversed(range(there_R_K.shape[1])):  # what came in first is asked about last, and kept
            rows = np.flatnonzero(there_R_K[:, k])
            questions = {
                example: Question((items[found.items_R_K[row, k]],))
                for example, row in zip(self.ids(places_R[rows]), rows, strict=True)
            }
            asked = self._ask(places_R[rows], questions)
            log_p_R_K[rows, k] = self.log_yes(asked)
            if k == 0:
                self._keep(found, dict(zip(rows.tolist(), asked, strict=True)))
        order_R_K = np.argsort(-log_p_R_K, axis=1, kind="stable")
        for there_K, order_K in zip(there_R_K, order_R_K, strict=True):
            if (n := int(there_K.sum())) > 1:
                found.as_it_came.append(bool((order_K[:n] == np.arange(n)).all()))
        found.items_R_K = np.take_along_axis(found.items_R_K, order_R_K, axis=1)

    def log_yes(self, asked: Sequence[_Asked]) -> list[float]:
        """log p(yes) of each, the mean over its reasonings."""
        yes = self.teacher.answers.index[YES]
        both = self.engine.log_probs_of([one.marked for one in asked], [range(2)] * len(asked))
        return [float(of_one[yes]) for of_one in both]

    def judged(self, places_R: NDArray[np.int64]) -> list[list[tuple[float, bool]]]:
        """p(yes) and whether it is right, of the questions to each example: one where it has a rating, else two."""
        questions = self.asking.questions
        assert isinstance(questions, LikedQuestions), "teachers are asked for yes or no"
        usable = set(questions.usable(places_R).tolist())
        found: list[list[tuple[float, bool]]] = [[] for _ in places_R]
        rows = [row for row, place in enumerate(places_R.tolist()) if place in usable]
        examples = self.task.examples[places_R[rows]].to_dicts()
        asks = [questions.asked_on_test(example) for example in examples]
        for which in range(max(map(len, asks), default=0)):
            told = {example[EXAMPLE_ID]: of_one[which] for example, of_one in zip(examples, asks, strict=True)}
            log_yes = self.log_yes(self._ask(places_R[rows], told))
            for row, example, log_p in zip(rows, examples, log_yes, strict=True):
                found[row].append((float(np.exp(log_p)), told[example[EXAMPLE_ID]].target == YES))
        return found

    def _ask(self, places_R: NDArray[np.int64], questions: dict[str, Question]) -> list[_Asked]:
        """Lets the teacher reason about a question to each example."""
        given = GivenQuestions(questions, self.asking.questions.answer_ids if self.asking.questions else ())
        asking = replace(self.asking, questions=given)
        rows = Rows(self.task, places_R, self.teacher.catalog, self.teacher.tokens, asking=asking)
        asked = []
        for batch, _, samples, marked in reasoned(rows, self.sampler, self.teacher.tokens, self.how):
            asked += [_Asked(*one) for one in zip(batch, samples, marked, strict=True)]
        return asked

    def _keep(self, found: Reranked, asked: dict[int, _Asked]) -> None:
        """Keeps contexts, texts and paths of what was asked last."""
        tokens, catalog = self.teacher.tokens, self.teacher.catalog
        for row, one in asked.items():
            found.contexts_R_G[row] = one.marked
            found.texts_R_G[row] = ["\n".join(parse(tokens.decode(sample.token_ids)).steps) for sample in one.samples]
        if self.how.mode == "plain" or not self.how.keep_paths or not asked:
            return
        target_of = dict(self.task.examples.select(EXAMPLE_ID, TARGET_ID).iter_rows())
        rows = [replace(one.row, target_id=target_of[one.row.example_id]) for one in asked.values()]
        samples = [one.samples for one in asked.values()]
        paths = iter(as_paths(rows, samples, None, tokens, catalog, seed=self.how.own_sampling.seed))
        for row, one in asked.items():
            found.paths[row] = [next(paths) for _ in one.samples]
            for at, order in enumerate(one.written):  # which begins with the marker
                path = found.paths[row][at]
                text = f"{(path.completion or '').removesuffix(MARKER).strip()} {order}".strip()
                found.paths[row][at] = replace(path, completion=text)

    def answers(self, places_R: NDArray[np.int64]) -> Answers:
        """The answers to examples, among the whole catalog.

        Args:
            places_R: their row numbers in `task.examples`.
        """
        answers = self.ranked(places_R, self.rerank(places_R))
        if isinstance(self.asking.questions, LikedQuestions):
            return replace(answers, judged_U=self.judged(places_R))
        return answers

    def ranked(self, places_R: NDArray[np.int64], found: Reranked) -> Answers:
        """What `rerank` made of candidates, among the whole catalog.

        Args:
            places_R: row numbers of the examples.
            found: of them.
        """
        ids, catalog, lists, n = self.ids(places_R), self.teacher.catalog, self.candidates.lists, len(places_R)
        incoming_R_K = lists.incoming(ids, max(self.how.top_k, found.items_R_K.shape[1])).items_R_K
        target_ids = self.task.examples[TARGET_ID].gather(places_R).to_list()
        place_R = places(found.items_R_K, catalog.indices(target_ids))
        came_R = lists.target_ranks(ids)
        ranks_R = np.where(place_R == NONE, came_R, place_R + 1)
        width = min(found.items_R_K.shape[1], incoming_R_K.shape[1])
        same_R_K = found.items_R_K[:, :width] == incoming_R_K[:, :width]
        top_R = [
            [catalog.item_ids[item] for item in dict.fromkeys([*mine, *rest]) if item != NONE][: self.how.top_k]
            for mine, rest in zip(found.items_R_K.tolist(), incoming_R_K.tolist(), strict=True)
        ]
        if self.how.mode == "greedy" and self.how.keep_paths:
            for paths, top, rank in zip(found.paths, top_R, ranks_R.tolist(), strict=True):
                title = catalog.titles[catalog.index[top[0]]] if top else None
                gain = json.dumps({"gain": float(ndcg(rank))})
                paths[:] = [
                    replace(path, item_id=next(iter(top), None), item_title=title, rank=rank, rewards=gain)
                    for path in paths
                ]
        return Answers(
            ranks_R,
            top_R,
            [path for paths in found.paths for path in paths],
            complete_U=np.ones(n, dtype=bool),
            as_evidence_U_2=np.stack([same_R_K[:, :k].all(axis=1) for k in SAME_TOP], axis=1),
            evidence_ranks_U=came_R,
            orders=found.orders,
            as_it_came=found.as_it_came,
        )


def mean_order(orders: Sequence[Order]) -> list[int]:
    """The order by the mean place over several orders of the same candidates; of equal ones the earlier is ahead.

    >>> mean_order([Order((2, 0, 1), 3), Order((0, 2, 1), 3)])
    [0, 2, 1]
    """
    places_G_K = np.argsort(np.array([one.places for one in orders], dtype=np.int64), axis=1)
    found: list[int] = np.argsort(places_G_K.mean(axis=0), kind="stable").tolist()
    return found
