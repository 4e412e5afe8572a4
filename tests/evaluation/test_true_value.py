"""True values against a slow sum: one ranking for each item of a tiny world, by the other engine."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.data.toy.world import StatedIntent
from anyo_rl.evaluation.prm_quality import markdown, quality, states
from anyo_rl.evaluation.true_value import all_ranks, expected_gains, first_intent, state_contexts, truth
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row, make_rows, sample_texts
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.values.step_values import forced_answer_values

N_ITEMS = 3 * 7 * 8


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(DataArguments(toy_users=40, toy_categories=3))


@pytest.fixture(scope="module")
def tokens(task) -> Tokens:
    return Tokens.of(train_tokenizer(sample_texts(task), 320))


@pytest.fixture(scope="module")
def ranker(task, tokens) -> DistributionRanker:
    """Of a teacher far from uniform, its catalog in another order than the world's."""
    model = make_tiny_teacher(tokens.tokenizer, hidden_size=32, n_layers=2, n_heads=2)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    items = task.interactions.items.sample(fraction=1.0, shuffle=True, seed=1)
    return DistributionRanker(build_catalog(items, tokens), model.eval())


@pytest.fixture(scope="module")
def labels(task, tokens, ranker) -> pl.DataFrame:
    """For two users: the truth, the truth with another style, one that never ends, and one without steps."""
    paths = []
    for row in make_rows(task, task.split("validation", 2), ranker.catalog, tokens):
        true = list(task.world.rationale(row.user_id, task.position(row.example_id)))
        other = "style: coral" if true[-1] != "style: coral" else "style: oak"
        ids = [tokens.reasoning_ids(steps) for steps in (true, [*true[:-1], other], true[:2], [])]
        ids[2] = ids[2][:-1]  # its marker
        for steps, of_path in zip((true, [*true[:-1], other], true[:2], []), ids, strict=True):
            paths.append(
                {**row.columns(), "steps": steps, "token_ids": of_path, "prompt_ids": tokens.context_ids(row.prompt)}
            )
    return pl.DataFrame(paths, schema_overrides={"steps": pl.List(pl.String)}).drop("prompt")


@pytest.fixture(scope="module")
def found(labels, task, ranker, tokens):
    return truth(labels, task, ranker, tokens)


@pytest.mark.slow
def test_a_true_value_is_the_sum_over_all_items_of_what_each_would_gain(labels, task, ranker, tokens, found):
    slow_ranker = LikelihoodRanker(ranker.catalog, ranker.model)
    ids = ranker.catalog.item_ids
    known: dict[str, np.ndarray] = {}
    for path, values in zip(labels.iter_rows(named=True), found.values_B, strict=True):
        example = path["example_id"]
        if example not in known:
            history = [task.world.index[item] for item in path["history"]]
            chances = dict(zip(task.world.item_ids, task.world.oracle_scores([history])[0], strict=True))
            known[example] = np.array([chances[item] for item in ids])
        # What each state would be worth if this item were the target: N_ITEMS values of each state.
        rows = [Row(example_id=f"{example} {i}", prompt="x", target_id=i, history=[], user_id="u") for i in ids]
        ends = tokens.step_ends(path["token_ids"])
        expected = []
        for end in [0, *ends]:
            context = [*path["prompt_ids"], *tokens.without_break(path["token_ids"][:end]), tokens.marker_id]
            ranks = slow_ranker.rank([context] * len(rows), ids, top_k=0).ranks_B
            expected.append(sum(p / np.log2(1 + rank) for p, rank in zip(known[example], ranks, strict=True)))
        if ends and tokens.marker_id not in path["token_ids"]:
            expected[-1] = 0.0
        assert len(rows) == N_ITEMS
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert len({round(float(value), 6) for values in found.values_B for value in values}) > 10


@pytest.mark.slow
def test_labels_are_draws_of_which_the_true_value_is_the_mean(labels, task, ranker, tokens, found):
    """Forced answers of many targets, drawn as the world draws them."""
    path = labels.row(0, named=True)
    history = [task.world.index[item] for item in path["history"]]
    chances = task.world.oracle_scores([history])[0]
    drawn = np.random.default_rng(0).choice(len(chances), 3000, p=chances)
    prompt = "tea oak 1\n"
    rows = [
        Row(example_id=str(n), prompt=prompt, target_id=task.world.item_ids[item], history=[], user_id="u")
        for n, item in enumerate(drawn)
    ]
    slow = forced_answer_values(
        rows, [path["token_ids"]] * len(rows), LikelihoodRanker(ranker.catalog, ranker.model), tokens
    )
    one = labels[:1].with_columns(prompt_ids=pl.Series([tokens.context_ids(prompt)]))
    values = truth(one, task, ranker, tokens).values_B[0]
    np.testing.assert_allclose(np.mean(slow, axis=0), values[:-1], atol=4 * 0.2 / np.sqrt(len(rows)))


def test_intents_have_the_probability_that_the_history_gives_them(labels, task, found):
    for path, probability in zip(labels.iter_rows(named=True), found.intents_B, strict=True):
        history = [task.world.index[item] for item in path["history"]]
        if len(path["steps"]) < 5:
            assert probability is None
            continue
        category, grade, style = (line.split()[-1] for line in path["steps"][2:])
        intent = StatedIntent(category, grade, style)
        assert probability == pytest.approx(task.world.intent_probability([intent], [history])[0])
    assert found.intents_B[0] > found.intents_B[1]


def test_quality_against_the_true_value_and_its_ceilings(labels, task, tokens, found):
    noise = np.random.default_rng(0)
    values = [np.clip(value + noise.normal(0, 0.05, len(value)), 0, 1) for value in found.values_B]
    frame = labels.with_columns(step_values=pl.Series([value.tolist() for value in values]))
    result = quality(frame, found.values_B, tokens, task, truth=found)
    against = result.true_value
    assert against.agreement.spearman == pytest.approx(1.0)
    assert (against.mse, against.agreement.within_step.spearman.mean) == (0.0, pytest.approx(1.0))
    # Noise made all labels different, so that no two states are one.
    expected = spearmanr(np.concatenate(found.values_B), np.concatenate(values)).statistic
    assert against.of_values.spearman == pytest.approx(expected)
    assert result.agreement.spearman == pytest.approx(against.of_values.spearman)
    assert result.auc_true_intent_of_world == 1.0
    text = markdown(result)
    assert "| Spearman with the true value | 1.0000 |" in text
    assert f"| Spearman of the values with the true value | {against.of_values.spearman:.4f} |" in text
    assert "| … by the world, from the history | 1.0000 |" in text
    assert quality(frame, found.values_B, tokens, task).true_value is None


def test_ties_count_against_every_item():
    assert all_ranks(np.array([[0.2, 0.2, 0.2], [0.1, 0.3, 0.2]])).tolist() == [[3, 3, 3], [3, 1, 2]]
    assert all_ranks(np.zeros((0, 4))).shape == (0, 4)


def test_an_intent_is_the_first_that_is_stated(task):
    steps = ["climb: 2", "next: tea", "grade: then 3", "style: oak", "style: blue"]
    assert first_intent(task.world, steps) == 4
    assert first_intent(task.world, steps[:3]) is None
    assert first_intent(task.world, []) is None


def test_the_world_of_orders_knows_what_states_are_worth():
    """A wrong head has probability 0, a true one 1; lines of states are true or false; values are sums as above."""
    task = load_task(
        DataArguments(dataset="toy-orders", toy_dial=1, toy_users=40, max_history=40, rationale_share=1.0)
    )
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 320))
    model = make_tiny_teacher(tokens.tokenizer, hidden_size=32, n_layers=2, n_heads=2)
    ranker = DistributionRanker(build_catalog(task.interactions.items, tokens), model.eval())
    (row,) = make_rows(task, task.split("validation", 1), ranker.catalog, tokens)
    true = list(task.world.true_rationale(row.user_id, task.position(row.example_id)))
    order = true[-2].partition(": ")[2].split()
    wrong = [*true[:-2], f"swap: {' '.join(order[::-1])}", f"head: {order[-1]}"]
    ids = [tokens.reasoning_ids(steps) for steps in (true, wrong)]
    paths = [
        {**row.columns(), "steps": steps, "token_ids": of_path, "prompt_ids": tokens.context_ids(row.prompt)}
        for steps, of_path in zip((true, wrong), ids, strict=True)
    ]
    labels = pl.DataFrame(paths).drop("prompt")
    labels = labels.with_columns(step_values=pl.Series([[0.1 * n for n in range(len(true) + 1)]] * 2))
    found = truth(labels, task, ranker, tokens)
    assert found.intents_B == [1.0, 0.0]
    history = [task.world.index[item] for item in row.history]
    chances = dict(zip(task.world.item_ids, task.world.oracle_scores([history])[0], strict=True))
    contexts = state_contexts(paths[0]["prompt_ids"], ids[0], tokens)
    wanted = np.array([[chances[item] for item in ranker.catalog.item_ids]] * len(contexts))
    expected = expected_gains(ranker.log_probs(contexts).numpy(), wanted)
    np.testing.assert_allclose(found.values_B[0], expected, atol=1e-6)
    scores = [np.linspace(0.1, 0.9, len(true) + 1)] * 2
    told = states(labels, scores, tokens, task, found)
    of_wrong = [state for state in told if state.true_line is False]
    assert [state.true_intent for state in of_wrong] == [None, False]  # the state before the head, and the head
    assert [state.true_intent for state in told if state.true_intent is not None] == [True, False]


def test_nobody_knows_outside_the_toy_world_or_of_masked_rankings(labels, task, ranker, tokens):
    assert truth(labels, dataclasses.replace(task, world=None), ranker, tokens) is None
    masked = dataclasses.replace(task, args=dataclasses.replace(task.args, mask_history=True))
    with pytest.raises(DataError, match="mask_history is set"):
        truth(labels, masked, ranker, tokens)


def test_contexts_of_a_path_without_steps_and_of_one_without_an_end(tokens):
    assert state_contexts([5], [tokens.marker_id], tokens) == [[5, tokens.marker_id]]
    ids = tokens.reasoning_ids(["next: tea"])[:-1]
    assert state_contexts([5], ids, tokens) == [[5, tokens.marker_id], None]
