"""Candidates that a teacher reranks: windows against a plain loop, and the rest of the catalog behind them."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.lists import RetrieverLists
from anyo_rl.evidence.retrievers import RetrieverSettings
from anyo_rl.evidence.reweighing import RetrieverWeights
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.order import Order
from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.kinds.candidates import Question, answers_of
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.reasoning.kinds.questions import Candidates, GivenQuestions, LikedQuestions, OrderQuestions
from anyo_rl.reasoning.rows import Rows, sample_texts
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How
from anyo_rl.search.reranked import Reranker, mean_order
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens

TASK = load_task(DataArguments(toy_users=40, toy_categories=5, rationale_share=0.5))
TEST = TASK.places("test")[:6]


class Writes:
    """A sampler that writes a text behind every context."""

    def __init__(self, tokens: Tokens, text: str) -> None:
        self.ids = (*tokens.tokenizer.encode(f" {text}", add_special_tokens=False), tokens.eos_id)

    def sample(self, contexts_B, sampling, *, keys_B=None):
        return [[Sample(self.ids, None, "stop")] for _ in contexts_B]


@pytest.fixture(scope="module")
def make():
    """Makes rerankers of one tiny teacher."""
    tokens = Tokens.of(train_tokenizer(sample_texts(TASK), 500))
    torch.manual_seed(0)
    model = make_tiny_teacher(tokens.tokenizer, hidden_size=16, n_layers=1, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that its answers are apart
    catalog = build_catalog(TASK.interactions.items, tokens)
    lists = RetrieverLists(RetrieverWeights(TASK, RetrieverSettings(("popularity",)), seed=0, n_folds=3))

    def reranker(name="listwise", mode="plain", text=None, n=2, top_k=12, **settings) -> Reranker:
        kind = load_kind(name, settings)
        candidates = Candidates(TASK, lists, kind.listed, seed=0)
        questions = OrderQuestions(candidates) if kind.liked is None else LikedQuestions(candidates, kind.liked)
        answers = build_catalog(answers_of(kind.liked is not None, kind.listed), tokens)
        return Reranker(
            TASK,
            Teacher(model, tokens, catalog, choices=answers),
            Asking(kind, TASK, questions),
            TransformersSampler(model, tokens),
            How(mode, Sampling(n=n, max_new_tokens=4), top_k=top_k),
            None if text is None else Writes(tokens, text),
        )

    return reranker


def number_log_probs(reranker: Reranker, place: int, items: list[str]) -> np.ndarray:
    """The whole distribution over the answers, asked at once about one list."""
    (example,) = TASK.examples[[place]].to_dicts()
    question = GivenQuestions({example["example_id"]: Question(tuple(items))}, reranker.asking.questions.answer_ids)
    asking = dataclasses.replace(reranker.asking, questions=question)
    (row,) = Rows(TASK, np.array([place]), reranker.teacher.catalog, reranker.teacher.tokens, asking=asking)
    tokens = reranker.teacher.tokens
    context = tokens.context_ids(row.prompt)
    marked = [*context, *tokens.reasoning_ids([], context)]
    return DistributionRanker(reranker.teacher.answers, reranker.teacher.model).log_probs([marked])[0].numpy()


def test_the_order_is_that_of_the_first_number_window_by_window(make):
    reranker = make(n_candidates=7, window=4, stride=2)
    found = reranker.rerank(TEST)
    items = reranker.teacher.catalog.item_ids
    for row, place in enumerate(TEST):
        order = list(reranker.candidates.of(reranker.ids(TEST)[row])[0])
        for start, end in ((3, 7), (1, 5), (0, 3)):
            lying = order[start:end]
            log_p = number_log_probs(reranker, place, lying)[: len(lying)]
            order[start:end] = [lying[at] for at in np.argsort(-log_p, kind="stable")]
        assert [items[item] for item in found.items_R_K[row]] == order
    assert len(found.as_it_came) == 3 * len(TEST)
    assert not found.orders


def test_written_orders_are_mended_counted_and_keep_what_they_do_not_name(make):
    reranker = make(n_candidates=5, window=5, stride=3, text="[3] > [3] > [9] > [1]")
    found, ids = reranker.rerank(TEST), reranker.ids(TEST)
    items = reranker.teacher.catalog.item_ids
    for row, example in enumerate(ids):
        came = reranker.candidates.of(example)[0]
        assert [items[item] for item in found.items_R_K[row]] == [came[place] for place in (2, 0, 1, 3, 4)]
    assert found.orders == [Order((2, 0, 1, 3, 4), 2, 1, 1)] * len(TEST)
    assert not any(found.as_it_came)


@pytest.mark.parametrize("text", ["nothing", "ignore all candidates", "->", "[99] > [0]"])
def test_what_cannot_be_read_keeps_the_incoming_order(make, text):
    reranker = make(n_candidates=5, window=3, stride=1, text=text)
    answers = reranker.answers(TEST)
    lists, ids = reranker.candidates.lists, reranker.ids(TEST)
    assert answers.ranks_U.tolist() == lists.target_ranks(ids).tolist()
    assert answers.as_evidence_U_2.all()
    assert all(answers.as_it_came)
    assert all(order.named == 0 for order in answers.orders)


def test_ranks_are_among_the_whole_catalog(make):
    # Backwards in one window: who came in at place p of 6 is at 7 − p now.
    reranker = make(n_candidates=6, window=6, stride=3, text="[6] > [5] > [4] > [3] > [2] > [1]", top_k=9)
    places = TASK.places("train")[:150]  # some of whose targets are among six of popularity's
    answers, ids = reranker.answers(places), reranker.ids(places)
    came = reranker.candidates.lists.target_ranks(ids)
    assert answers.ranks_U.tolist() == [7 - rank if rank <= 6 else rank for rank in came.tolist()]
    assert (came > 6).any()
    assert (came <= 6).any()
    first = reranker.candidates.lists.incoming(ids, 9).items_R_K
    items = reranker.teacher.catalog.item_ids
    for top, row in zip(answers.top_ids_U_K, first.tolist(), strict=True):
        assert top == [items[item] for item in [*row[5::-1], *row[6:]]]
    np.testing.assert_array_equal(answers.evidence_ranks_U, came)
    assert not answers.as_evidence_U_2.any()


def test_shuffled_lists_go_back_to_their_items(make):
    plain = make(n_candidates=6, window=6, stride=3, text="[1] > [2] > [3] > [4] > [5] > [6]").rerank(TEST)
    shuffled = make(n_candidates=6, window=6, stride=3, shuffled=True, text="nothing").rerank(TEST)
    assert all(plain.as_it_came)
    assert all(shuffled.as_it_came)  # as they were shown
    assert (plain.items_R_K != shuffled.items_R_K).any()
    np.testing.assert_array_equal(np.sort(plain.items_R_K, axis=1), np.sort(shuffled.items_R_K, axis=1))


def test_a_mixture_is_the_mean_place(make):
    orders = [Order((2, 0, 1), 3), Order((2, 1, 0), 3), Order((0, 2, 1), 3)]
    # Places of 0: 1, 2, 0; of 1: 2, 1, 2; of 2: 0, 0, 1.
    assert mean_order(orders) == [2, 0, 1]
    reranker = make(mode="mixture", n_candidates=4, window=4, stride=2, text="[2]", n=3)
    found = reranker.rerank(TEST[:2])
    assert len(found.orders) == 6
    assert [len(paths) for paths in found.paths] == [3, 3]


def test_greedy_reasonings_are_kept_as_paths_of_items(make):
    reranker = make(mode="greedy", n_candidates=5, window=3, stride=2)
    answers = reranker.answers(TEST)
    targets = TASK.examples["target_id"].gather(TEST).to_list()
    assert [path.target_id for path in answers.paths] == targets
    assert [path.rank for path in answers.paths] == answers.ranks_U.tolist()
    assert [path.item_id for path in answers.paths] == [top[0] for top in answers.top_ids_U_K]
    assert all("Candidates:" in path.prompt for path in answers.paths)
    written = make(mode="greedy", n_candidates=5, window=3, stride=2, text="[3] > [1]").answers(TEST)
    assert all(path.completion.endswith("-> [3] > [1]") for path in written.paths)
    assert all(path.completion.count("->") == 1 for path in written.paths)


def test_items_are_ordered_by_p_yes_one_by_one(make):
    reranker = make("yes_no", n_candidates=4)
    answers = reranker.answers(TEST)
    for row, place in enumerate(TEST):
        came = reranker.candidates.of(reranker.ids(TEST)[row])[0]
        log_yes = [number_log_probs(reranker, place, [item])[0] for item in came]
        assert answers.top_ids_U_K[row][:4] == [came[at] for at in np.argsort(-np.array(log_yes), kind="stable")]
    for row, judged in enumerate(answers.judged_U):
        assert [liked for _, liked in judged] == [True, False]
        (example,) = TASK.examples[[TEST[row]]].to_dicts()
        chosen, other = reranker.asking.questions.pair(example)
        expected = [np.exp(number_log_probs(reranker, TEST[row], list(one.listed))[0]) for one in (chosen, other)]
        np.testing.assert_allclose([p for p, _ in judged], expected, rtol=1e-4)


def test_an_example_without_candidates_is_named(make):
    reranker = make(n_candidates=3, window=3, stride=2)
    nobody = SimpleNamespace(
        incoming=lambda ids, k: SimpleNamespace(
            items_R_K=np.full((len(ids), k), NONE), scores_R_K=np.full((len(ids), k), -np.inf)
        )
    )
    candidates = dataclasses.replace(reranker.candidates, lists=nobody, _known={})
    with pytest.raises(ValueError, match="nobody names a candidate"):
        candidates.of(reranker.ids(TEST)[0])
