"""Credit for steps, in the trainer: which token gets what, from values that an oracle gives."""

import math

import numpy as np
import pytest
import torch

from anyo_rl.metrics.gains import ndcg
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.process import process_advantages
from anyo_rl.training.advantages.progress import progress_advantages
from anyo_rl.values.source import StepSource
from tests.training.helpers import G, batch_of, slow_step_values, trained_batches

NAN = np.nan


def test_each_token_has_the_advantage_of_its_step(small_tokens):
    encode, marker = small_tokens.tokenizer.encode, small_tokens.marker_id
    texts = ["mug\nmug\nAlien", "Alien"]
    ids = [[*encode(text, add_special_tokens=False), marker] for text in texts]
    ends = small_tokens.step_ends(ids[0])
    assert len(ends) == 3
    values = [np.array([0.2, 0.5, 0.1]), np.array([0.2])]
    found = Credit("progress", StepSource()).token_advantages(
        batch_of(ids, small_tokens, [1.0, 0.4], values, [1.0, 0.4])
    )
    width = found.shape[1]
    first = [0.3] * ends[0] + [0.0] * (ends[1] - ends[0]) + [0.4] * (width - ends[1])
    np.testing.assert_allclose(found, [first, [-0.3] * width], atol=1e-6)


def slow_advantages(kind: str, outcomes: list[float], values: list[list[float]]) -> list[list[float]]:
    """Advantages of each completion's steps, from its outcome and the values before its steps."""
    found = []
    for start in range(0, len(outcomes), G):
        group = list(zip(outcomes[start : start + G], values[start : start + G], strict=True))
        if kind == "progress":
            mean = sum(outcome for outcome, _ in group) / G
            steps = [[outcome - mean - (value - before[0]) for value in before] for outcome, before in group]
            spread = math.sqrt(sum(np.mean(np.square(of_path)) for of_path in steps) / G)
            found += [[step / (spread + 1e-4) for step in of_path] for of_path in steps]
        else:
            gains = [np.diff([*before, outcome]) for outcome, before in group]
            pooled = np.concatenate(gains)
            normal = [(of_path - pooled.mean()) / (pooled.std(ddof=1) + 1e-4) for of_path in gains]
            found += [[float(of_path[step:].mean()) for step in range(len(of_path))] for of_path in normal]
    return found


@pytest.mark.parametrize("advantages", ["progress", "process"])
@pytest.mark.parametrize("step_values", ["forced_answer", "monte_carlo"])
def test_the_trainer_learns_from_steps(make_stepping, small_tokens, advantages, step_values):
    seen = []

    def keep(prompts, completion_ids, target_id, rank, **_):
        of_steps = [
            slow_step_values(trainer, *asked) for asked in zip(prompts, completion_ids, target_id, strict=True)
        ]
        seen.append((rank, completion_ids, of_steps))
        return [0.0 if r is None else ndcg(r) for r in rank]

    credit = Credit(advantages, StepSource(step_values, n_continuations=2))
    settings = {"max_completion_length": 8, "scale_rewards": "group"}
    trainer = make_stepping(reward=keep, method=credit, settings=settings)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    outputs = trained_batches(trainer)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    row = trainer.state.log_history[0]
    assert {"values/first", "values/last", "values/seconds"} <= row.keys()
    assert 0 < row["values/first"] <= 1
    assert len(outputs) == len(seen) == 2
    n_steps = 0
    for output, (ranks, completion_ids, values) in zip(outputs, seen, strict=True):
        assert output["advantages"].shape == output["completion_ids"].shape
        assert output["advantages"].isfinite().all()
        outcomes = [0.0 if rank is None else ndcg(rank) for rank in ranks]
        expected = slow_advantages(advantages, outcomes, values)
        for ids, advantages_T, of_steps in zip(completion_ids, output["advantages"], expected, strict=True):
            ends = small_tokens.step_ends(ids)
            n_steps = max(n_steps, len(ends))
            for start, end, of_step in zip([0, *ends], ends, of_steps, strict=False):
                assert len(set(advantages_T[start:end].tolist())) == 1
                if step_values == "forced_answer":
                    assert advantages_T[start].item() == pytest.approx(of_step, abs=1e-4)
        if advantages == "progress":  # equal outcomes of a group begin alike
            groups = np.array([0 if r is None else r for r in ranks]).reshape(-1, G)
            first = output["advantages"][:, 0].view(-1, G).numpy()
            for of_group, at_first in zip(groups, first, strict=True):
                for rank in set(of_group.tolist()):
                    assert len(set(at_first[of_group == rank].round(5).tolist())) == 1
    assert n_steps > 1, "no completion had two steps: the test shows nothing"


def test_the_last_step_ends_with_the_outcome(small_tokens):
    """For `process` gains of steps add up to the outcome less V_0; `progress` has values before steps alone."""
    ids = [[*small_tokens.tokenizer.encode("x\ny", add_special_tokens=False), small_tokens.marker_id]] * 2
    values, outcomes = [np.array([0.2, 0.5]), np.array([0.2, 0.3])], [0.9, 0.0]
    given = batch_of(ids, small_tokens, outcomes, values, outcomes)
    first, last = small_tokens.step_ends(ids[0])[0] - 1, len(ids[0]) - 1
    found = Credit("process", StepSource(), reduction="sum").token_advantages(given)
    steps = process_advantages(torch.tensor([[0.3, 0.4], [0.1, -0.3]]), 2, "sum", "none")
    torch.testing.assert_close(found[:, [first, last]], steps)
    found = Credit("progress", StepSource()).token_advantages(given)
    steps = progress_advantages(torch.tensor(outcomes), torch.tensor([[0.2, 0.5], [0.2, 0.3]]), 2, "none")
    torch.testing.assert_close(found[:, [first, last]], steps)


def test_all_rewards_have_their_part_in_the_last_step(small_tokens):
    """The gain is what the last state is worth; a reward beside it, or in its place, counts there too."""
    ids = [[*small_tokens.tokenizer.encode("x\ny", add_special_tokens=False), small_tokens.marker_id]] * 3
    values, gains = [np.array([0.2, 0.5]), np.array([0.2, 0.3]), np.array([0.2, 0.2])], [0.9, 0.0, 0.5]
    rewards = [1.4, -0.2, math.nan]  # of the third no reward applies, and its gain stays
    given = batch_of(ids, small_tokens, rewards, values, gains)
    first, last = small_tokens.step_ends(ids[0])[0] - 1, len(ids[0]) - 1
    found = Credit("process", StepSource(), reduction="sum").token_advantages(given)
    steps = process_advantages(torch.tensor([[0.3, 0.9], [0.1, -0.5], [0.0, 0.3]]), 3, "sum", "none")
    torch.testing.assert_close(found[:, [first, last]], steps)


def test_a_prm_gives_the_values_before_steps(small_tokens):
    """Its scores less the one after the last step, which the outcome stands for; one where there is no step."""
    ids = [small_tokens.tokenizer.encode(text, add_special_tokens=False) for text in ("x\ny", "")]
    asked = []

    class Fixed:
        def check_texts(self, completion_ids_B, texts_B):
            assert texts_B == ["x\ny", ""]

        def scores(self, prompt_ids_B, completion_ids_B):
            asked.append(prompt_ids_B)
            return [np.array([0.2, 0.5, 0.9]), np.array([0.3])]

    rows = [Row(f"u{n}:1", f"u{n}", [], "i1", prompt=prompt) for n, prompt in enumerate(("Alien\n", "mug\n"))]
    source = StepSource("prm", prm=Fixed())
    found = source.values(rows, ids, None, None, small_tokens, Sampling())
    assert [values.tolist() for values in found] == [[0.2, 0.5], [0.3]]
    assert asked == [[small_tokens.context_ids(row.prompt) for row in rows]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "prm"}, "step_values prm and a PRM go together"),
        ({"kind": "judge"}, "step_values judge and a judge go together"),
        ({"kind": "guess"}, "step_values is 'guess'"),
        ({"n_continuations": 0}, "n_continuations is 0: expected 1 or more"),
    ],
)
def test_unknown_sources_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        StepSource(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"advantages": "guess"}, "advantages is 'guess': expected one of outcome, progress, process"),
        ({"advantages": "progress"}, "advantages is 'progress' without a source of step values"),
        ({"source": StepSource()}, "advantages is 'outcome' with a source of step values"),
        ({"reduction": "least"}, "reduction is 'least': expected one of sum, mean"),
    ],
)
def test_credit_that_means_nothing_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Credit(**wrong)


def test_the_outcome_is_what_trl_makes_of_the_rewards(small_tokens):
    given = batch_of([[5, 6], [7]], small_tokens, [1.0, 0.4])
    assert Credit().token_advantages(given) is given.outcome_B


def test_rewards_normalised_one_by_one_have_no_scale_for_values(make_stepping):
    credit = Credit("progress", StepSource())
    with pytest.raises(ValueError, match="set ranker to likelihood and multi_objective_aggregation"):
        make_stepping(method=credit, settings={"multi_objective_aggregation": "normalize_then_sum"})


def test_no_advantages_leave_the_reasoning_alone(small_tokens):
    """The control of what reinforcement adds: the item loss alone trains, and no states are asked for."""
    ids = [[*small_tokens.tokenizer.encode("x\ny", add_special_tokens=False), small_tokens.marker_id]] * 2
    given = batch_of(ids, small_tokens, [0.9, 0.0], [np.array([0.2]), np.array([0.1])], [0.9, 0.0])
    assert Credit("none").token_advantages(given).tolist() == [0, 0]
    with pytest.raises(ValueError, match="advantages is 'none' with a source of step values"):
        Credit("none", StepSource())
