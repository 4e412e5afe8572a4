"""PPO in the trainer: the critic's values, what tokens are rewarded with, the loss, adapters and checkpoints."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification
from trl import GRPOTrainer

from anyo_rl.training.advantages.gae import gae
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.critic import (
    CRITIC,
    attach_critic,
    completion_values,
    detach_critic,
    recorded_values,
    train_critic,
)
from anyo_rl.values.source import StepSource
from tests.training.helpers import batch_of, by_rank, slow_step_values, trained_batches, weights_of

NAN = float("nan")


@pytest.fixture
def make(make_stepping, stepping_teacher):
    def trainer(ppo=None, classifier=None, peft_config=None, **arguments):
        attach_critic(stepping_teacher, classifier)
        return make_stepping(method=ppo or Ppo(), peft_config=train_critic(peft_config), **arguments)

    return trainer


def test_values_are_of_the_states_before_each_token(small_teacher, small_tokens):
    attach_critic(small_teacher)
    torch.nn.init.normal_(small_teacher.value_head.linear.weight)
    prompt, completion = small_tokens.context_ids("mug\n"), [5, 6, 7]
    ids = torch.tensor([prompt + completion])
    with recorded_values(small_teacher) as values:
        small_teacher(input_ids=ids)
    small_teacher(input_ids=ids)  # nobody listens
    assert len(values) == 1
    hidden = small_teacher.model(input_ids=ids).last_hidden_state
    expected = small_teacher.value_head.linear(hidden)[0, :, 0]
    found = completion_values(values, len(completion))
    torch.testing.assert_close(found[0], expected[len(prompt) - 1 : -1])
    # The state before a token knows nothing of it.
    ids[0, -1] = 9
    with recorded_values(small_teacher) as others:
        small_teacher(input_ids=ids)
    torch.testing.assert_close(completion_values(others, 3), found)


def test_rewards_are_given_where_they_were_earned(small_tokens):
    encode, marker = small_tokens.tokenizer.encode, small_tokens.marker_id
    ids = [[*encode(text, add_special_tokens=False), marker] for text in ("mug\nmug\nAlien", "Alien")]
    ends, rewards = small_tokens.step_ends(ids[0]), torch.tensor([1.0, 0.5])
    values, outcomes = [np.array([0.2, 0.5, 0.1]), np.array([0.3])], [0.9, 0.4]

    given = batch_of(ids, small_tokens, rewards.tolist(), values, outcomes)
    width = given.mask_B_T.shape[1]
    plain = Ppo().token_rewards(given)
    assert plain.nonzero().tolist() == [[0, len(ids[0]) - 1], [1, len(ids[1]) - 1]]
    assert plain.sum(1).tolist() == [1.0, 0.5]

    shaped = Ppo(step_rewards="shaping", source=StepSource(), step_reward_weight=2.0).token_rewards(given)
    expected = torch.zeros(2, width)
    expected[0, ends[0] - 1], expected[0, ends[1] - 1] = 2 * (0.5 - 0.2), 2 * (0.1 - 0.5)
    expected[0, len(ids[0]) - 1] = 1 - 2 * 0.1
    expected[1, len(ids[1]) - 1] = 0.5 - 2 * 0.3
    torch.testing.assert_close(shaped, expected)

    scored = Ppo(step_rewards="scores", source=StepSource(), step_reward_weight=3.0).token_rewards(given)
    expected = plain.clone()
    for end, score in zip(ends, [0.5, 0.1, 0.9], strict=True):
        expected[0, end - 1] += score
    expected[1, small_tokens.step_ends(ids[1])[0] - 1] += 3 * 0.4
    torch.testing.assert_close(scored, expected)


def slow_token_rewards(kind: str, ends: list[int], n_tokens: int, values: list[float], outcome: float) -> list[float]:
    """What the tokens of a completion get for its steps, one token at a time; γ is 0.9."""
    given = [0.0] * n_tokens
    if kind == "shaping":
        before = [values[sum(end <= t for end in ends[:-1])] for t in range(n_tokens)]
        for t in range(n_tokens):
            given[t] = 0.9 * (before[t + 1] if t + 1 < n_tokens else 0.0) - before[t]
    if kind == "scores":
        for end, score in zip(ends, [*values[1:], outcome], strict=False):
            given[end - 1] += score / len(ends)
    return given


@pytest.mark.parametrize("step_rewards", ["none", "shaping", "scores"])
def test_advantages_are_those_of_a_slow_loop(make, step_rewards):
    seen = []

    def keep(prompts, completion_ids, target_id, rank, **_):
        seen.append(list(zip(prompts, completion_ids, target_id, rank, strict=True)))
        return by_rank(rank)

    source = None if step_rewards == "none" else StepSource()
    ppo = Ppo(gamma=0.9, lam=0.8, whiten_advantages=False, step_rewards=step_rewards, source=source)
    trainer = make(ppo, reward=keep, settings={"max_completion_length": 8, "learning_rate": 0.0})
    torch.nn.init.normal_(trainer.model.value_head.linear.weight)
    outputs, most_steps, firsts = trained_batches(trainer), 0, []
    for output, completions in zip(outputs, seen, strict=True):
        mask = output["completion_mask"]
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        attention = torch.cat([output["prompt_mask"], mask], 1)
        with torch.no_grad():
            hidden = trainer.model.model(input_ids=ids, attention_mask=attention).last_hidden_state
            values = trainer.model.value_head(hidden)[:, output["prompt_ids"].shape[1] - 1 : -1]
        torch.testing.assert_close(output["old_values"] * mask, values * mask)
        given = torch.zeros(mask.shape)
        for row, (prompt, written, target, rank) in zip(given, completions, strict=True):
            ends = trainer.tokens.step_ends(written)
            most_steps = max(most_steps, len(ends))
            of_steps = slow_step_values(trainer, prompt, written, target)
            firsts.append(of_steps[0])
            outcome = 0.0 if rank is None else 1 / math.log2(1 + rank)
            row[: len(written)] = torch.tensor(slow_token_rewards(step_rewards, ends, len(written), of_steps, outcome))
            row[len(written) - 1] += 0.0 if rank is None else 1 / rank
        advantages, returns = gae(given, values, mask, 0.9, 0.8)
        torch.testing.assert_close(output["advantages"], advantages)
        torch.testing.assert_close(output["returns"] * mask, returns)
    assert most_steps > 1, "no completion had two steps: the test shows nothing"
    row = trainer.state.log_history[0]
    if step_rewards == "none":
        assert "values/first" not in row
    else:
        assert row["values/first"] == pytest.approx(np.mean(firsts[: len(firsts) // 2]))
    assert row["value/clip_ratio"] == 0  # no step of the optimizer in between
    assert row["value/loss"] > 0


@pytest.mark.parametrize("generations_of_steps", [1, 2])
def test_no_forward_is_made_twice(make, monkeypatch, generations_of_steps):
    """TRL makes one over what it has just sampled where the optimizer steps in between, and that has the values."""
    made = []
    forward = GRPOTrainer._get_per_token_logps_and_entropies

    def counted(self, model, *args, **kwargs):
        made.append(torch.is_grad_enabled())
        return forward(self, model, *args, **kwargs)

    settings = {"steps_per_generation": generations_of_steps, "learning_rate": 0.0, "max_steps": 2}
    trainer = make(Ppo(), reward=by_rank, settings=settings)
    torch.nn.init.normal_(trainer.model.value_head.linear.weight)
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", counted)
    outputs, generate = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: outputs.append(generate(inputs)) or outputs[-1]
    trainer.train()
    assert len(outputs) == 2 // generations_of_steps
    assert (made.count(False), made.count(True)) == (len(outputs), 2)
    for output in outputs:
        assert ("old_per_token_logps" in output) == (generations_of_steps == 2)
        with torch.no_grad():
            _, values = trainer._log_probs_and_values(output)
        mask = output["completion_mask"]
        torch.testing.assert_close(output["old_values"] * mask, values * mask)


def test_the_loss_is_trls_and_the_critics(make):
    trainer = make(Ppo(vf_coef=0.5), reward=by_rank, item_loss="none", settings={"loss_type": "dapo"})
    torch.nn.init.normal_(trainer.model.value_head.linear.weight)
    found = []
    compute = trainer._compute_loss

    def keep(model, inputs):
        loss = compute(model, inputs)
        with torch.no_grad():
            policy = GRPOTrainer._compute_loss(trainer, model, inputs)
            _, values = trainer._log_probs_and_values(inputs)
        mask = inputs["completion_mask"]
        n = mask.sum()
        critic = 0.5 * ((values - inputs["returns"]).square() * mask).sum() / n
        found.append((loss.item(), policy.item() + 0.5 * critic.item()))
        return loss

    trainer._compute_loss = keep
    before = weights_of(trainer.model)
    trainer.train()
    assert len(found) == 2
    for loss, expected in found:
        assert loss == pytest.approx(expected, rel=1e-4)
    after = weights_of(trainer.model)
    assert not torch.equal(before[f"{CRITIC}.linear.weight"], after[f"{CRITIC}.linear.weight"])


@pytest.mark.parametrize("kl", ["reward", "loss"])
def test_divergence_goes_into_the_reward_or_the_loss(make, small_teacher, tmp_path, kl):
    small_teacher.save_pretrained(tmp_path / "reference")  # it is never inclined to end, as the teacher will be
    small_teacher.config._name_or_path = str(tmp_path / "reference")
    ppo = Ppo(kl=kl, lam=1.0, whiten_advantages=False)
    rewards = [float(i) for i in range(8)]
    settings = {"beta": 0.3, "learning_rate": 0.0, "loss_type": "dapo"}
    trainer = make(ppo, reward=lambda completions, **_: rewards, settings=settings, item_loss="none")
    output = trained_batches(trainer)[0]
    mask = output["completion_mask"]
    with torch.no_grad():
        log_probs, _ = trainer._log_probs_and_values(output)
    of_tokens = (log_probs - output["ref_per_token_logps"]) * mask
    divergence = of_tokens.sum(1)
    assert divergence.abs().min() > 0.1
    expected = torch.tensor(rewards) - (0.3 * divergence if kl == "reward" else 0)
    torch.testing.assert_close(output["returns"][:, 0], expected, atol=1e-4, rtol=1e-4)
    # In the loss it is TRL's estimate, which has no negative terms.
    estimate = (-of_tokens).exp() + of_tokens - 1
    n, row = mask.sum().item(), trainer.state.log_history[0]
    assert row["kl"] == pytest.approx((of_tokens if kl == "reward" else estimate).sum().item() / n, rel=1e-3)
    # The ratio to the old policy is 1, and a head that begins at zero gives the value 0.
    of_tokens = -output["advantages"] + ppo.vf_coef * 0.5 * output["returns"].square()
    of_tokens += 0.3 * estimate if kl == "loss" else 0.0
    assert row["loss"] == pytest.approx((of_tokens * mask).sum().item() / n, abs=1e-3)
    assert trainer.beta == 0.3


def test_a_completion_without_a_reward_teaches_nothing(make):
    def first_of_each(completions, **_):
        return [1.0 if i % 4 == 0 else None for i in range(len(completions))]

    trainer = make(reward=first_of_each)
    for output in trained_batches(trainer):
        none = torch.arange(len(output["advantages"])) % 4 != 0
        assert output["advantages"][none].abs().sum() == 0
        assert output["value_mask"][none].sum() == 0
        assert (output["advantages"][~none] != 0).sum() == output["completion_mask"][~none].sum() > 0
        assert output["advantages"].isfinite().all()


def test_under_lora_the_head_is_trained_and_kept_and_merges_away(make, small_teacher, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make(reward=by_rank, peft_config=config, settings={"save_strategy": "steps", "save_steps": 2})
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    trained = {name for name in after if "lora_" in name or f"{CRITIC}.modules_to_save" in name}
    assert {name for name in after if not torch.equal(after[name], before[name])} == trained
    kept = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    (head,) = (value for name, value in kept.items() if name.endswith(f"{CRITIC}.linear.weight"))
    (expected,) = (after[name] for name in trained if name.endswith("linear.weight"))
    torch.testing.assert_close(head, expected)
    whole = trainer.model.merge_and_unload()
    detach_critic(whole)
    assert not any(CRITIC in name for name in whole.state_dict())


def test_the_loss_of_a_separate_critic_does_not_reach_the_policy(make, small_teacher, tmp_path):
    small_teacher.save_pretrained(tmp_path / "teacher")
    classifier = AutoModelForTokenClassification.from_pretrained(tmp_path / "teacher", num_labels=1)
    trainer = make(classifier=classifier, reward=by_rank)
    before = weights_of(trainer.model)
    outputs = trained_batches(trainer)
    assert outputs[0]["old_values"].abs().sum() == 0  # its head begins at zero
    assert outputs[1]["old_values"].abs().sum() > 0
    after = weights_of(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(f"{CRITIC}.classifier.model.layers" in name for name in moved)
    trainer.model.zero_grad()
    _, values = trainer._log_probs_and_values(outputs[1])
    values.sum().backward()
    reached = {name for name, p in trainer.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached
    assert all(name.startswith(CRITIC) for name in reached)


def test_the_critic_learns_at_a_rate_of_its_own(make):
    for rate, expected in ((None, 0.01), (0.5, 0.5)):
        trainer = make(Ppo(critic_learning_rate=rate), settings={"learning_rate": 1e-3, "weight_decay": 0.1})
        names = {id(p): name for name, p in trainer.model.named_parameters()}
        for _ in range(2):  # asked again it gives what it made
            groups = trainer.create_optimizer().param_groups
            rates = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
            assert sum(len(group["params"]) for group in groups) == len(rates)
            assert rates.pop(f"{CRITIC}.linear.weight") == (expected, 0.1)
            assert rates.pop(f"{CRITIC}.linear.bias") == (expected, 0.0)
            assert {rate for rate, _ in rates.values()} == {1e-3}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 1.2}, "gamma is 1.2: expected a number from 0 to 1"),
        ({"lam": -0.1}, "lam is -0.1"),
        ({"cliprange_value": 0.0}, "expected a range above 0"),
        ({"kl": "both"}, "kl is 'both': expected one of reward, loss"),
        ({"step_rewards": "prm"}, "step_rewards is 'prm': expected one of none, shaping, scores"),
        ({"step_rewards": "scores"}, "rewards for steps need a source"),
        ({"source": StepSource()}, "rewards for steps need a source"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Ppo(**wrong)


def test_rewards_normalised_one_by_one_are_refused(make):
    with pytest.raises(ValueError, match="credit for steps and PPO need an answer that is read off"):
        make(settings={"multi_objective_aggregation": "normalize_then_sum"})
