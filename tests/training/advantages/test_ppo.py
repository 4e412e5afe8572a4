"""PPO in the trainer: the critic's values, what tokens are rewarded with, the loss, adapters and checkpoints."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification
from trl import GRPOTrainer

from anyo_rl.training.advantages.ppo import Ppo, completion_values
from anyo_rl.training.critic import CRITIC, attach_critic, detach_critic, recorded_values, train_critic, without_critic
from anyo_rl.training.objectives import gae
from anyo_rl.values.source import StepSource
from tests.training.helpers import by_rank, weights_of

NAN = float("nan")


@pytest.fixture
def make(make_stepping, stepping_teacher):
    def trainer(ppo=None, classifier=None, peft_config=None, **arguments):
        attach_critic(stepping_teacher, classifier)
        return make_stepping(ppo=ppo or Ppo(), peft_config=train_critic(peft_config), **arguments)

    return trainer


def batches_of(trainer) -> list[dict]:
    """What each generation gave, from now on."""
    outputs, original = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: outputs.append(original(inputs)) or outputs[-1]
    return outputs


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
    width = max(map(len, ids)) + 2
    completion_ids = torch.tensor([row + [small_tokens.tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    ends, rewards = small_tokens.step_ends(ids[0]), torch.tensor([1.0, 0.5])
    values, outcomes = [np.array([0.2, 0.5, 0.1]), np.array([0.3])], [0.9, 0.4]

    plain = Ppo().token_rewards(rewards, mask, completion_ids, small_tokens)
    assert plain.nonzero().tolist() == [[0, len(ids[0]) - 1], [1, len(ids[1]) - 1]]
    assert plain.sum(1).tolist() == [1.0, 0.5]

    given = (rewards, mask, completion_ids, small_tokens, values, outcomes)
    shaped = Ppo(step_rewards="shaping", source=StepSource(), step_reward_weight=2.0).token_rewards(*given)
    expected = torch.zeros(2, width)
    expected[0, ends[0] - 1], expected[0, ends[1] - 1] = 2 * (0.5 - 0.2), 2 * (0.1 - 0.5)
    expected[0, len(ids[0]) - 1] = 1 - 2 * 0.1
    expected[1, len(ids[1]) - 1] = 0.5 - 2 * 0.3
    torch.testing.assert_close(shaped, expected)

    scored = Ppo(step_rewards="scores", source=StepSource(), step_reward_weight=3.0).token_rewards(*given)
    expected = plain.clone()
    for end, score in zip(ends, [0.5, 0.1, 0.9], strict=True):
        expected[0, end - 1] += score
    expected[1, small_tokens.step_ends(ids[1])[0] - 1] += 3 * 0.4
    torch.testing.assert_close(scored, expected)


@pytest.mark.parametrize("step_rewards", ["none", "shaping", "scores"])
def test_advantages_are_those_of_a_slow_loop(make, small_tokens, step_rewards):
    source = None if step_rewards == "none" else StepSource()
    ppo = Ppo(gamma=0.9, lam=0.8, whiten_advantages=False, step_rewards=step_rewards, source=source)
    trainer = make(ppo, reward=by_rank, settings={"max_completion_length": 8, "learning_rate": 0.0})
    torch.nn.init.normal_(trainer.model.value_head.linear.weight)
    outputs, steps = batches_of(trainer), []
    calculate = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *args: steps.append(calculate(*args)) or steps[-1]
    trainer.train()
    for output, rewards in zip(outputs, steps, strict=True):
        mask = output["completion_mask"]
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        attention = torch.cat([output["prompt_mask"], mask], 1)
        with torch.no_grad():
            hidden = trainer.model.model(input_ids=ids, attention_mask=attention).last_hidden_state
            values = trainer.model.value_head(hidden)[:, output["prompt_ids"].shape[1] - 1 : -1]
        torch.testing.assert_close(output["old_values"] * mask, values * mask)
        if step_rewards == "none":
            given = torch.zeros(mask.shape)
            for row, of_row, reward in zip(given, mask, rewards[:, 0].tolist(), strict=True):
                row[int(of_row.sum()) - 1] = reward
            advantages, returns = gae(given, values, mask, 0.9, 0.8)
            torch.testing.assert_close(output["advantages"], advantages)
            torch.testing.assert_close(output["returns"] * mask, returns)
        assert output["advantages"].shape == mask.shape
        assert (output["advantages"] * (1 - mask)).abs().sum() == 0
    row = trainer.state.log_history[0]
    assert ("values/first" in row) == (step_rewards != "none")
    assert row["value/clip_ratio"] == 0  # no step of the optimizer in between
    assert row["value/loss"] > 0


def test_the_loss_is_trls_and_the_critics(make):
    trainer = make(Ppo(vf_coef=0.5), reward=by_rank, item_loss="none", settings={"loss_type": "dapo"})
    torch.nn.init.normal_(trainer.model.value_head.linear.weight)
    found = []
    compute = trainer._compute_loss

    def keep(model, inputs):
        loss = compute(model, inputs)
        with torch.no_grad():
            policy = GRPOTrainer._compute_loss(trainer, model, inputs)
            _, values = trainer.log_probs_and_values(inputs)
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
    trainer = make(ppo, reward=lambda completions, **_: rewards, settings={"beta": 0.3, "learning_rate": 0.0})
    outputs, losses = batches_of(trainer), []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: losses.append(compute(model, inputs)) or losses[-1]
    trainer.train()
    output = outputs[0]
    mask = output["completion_mask"]
    with torch.no_grad():
        log_probs, _ = trainer.log_probs_and_values(output)
    divergence = ((log_probs - output["ref_per_token_logps"]) * mask).sum(1)
    assert divergence.abs().min() > 0.1
    expected = torch.tensor(rewards) - (0.3 * divergence if kl == "reward" else 0)
    torch.testing.assert_close(output["returns"][:, 0], expected, atol=1e-4, rtol=1e-4)
    row = trainer.state.log_history[0]
    if kl == "reward":
        assert row["kl"] == pytest.approx(divergence.sum().item() / mask.sum().item(), rel=1e-3)
    else:
        assert row["kl"] > 0
    assert trainer.beta == 0.3


def test_a_completion_without_a_reward_teaches_nothing(make):
    def first_of_each(completions, **_):
        return [1.0 if i % 4 == 0 else None for i in range(len(completions))]

    trainer = make(reward=first_of_each)
    outputs = batches_of(trainer)
    trainer.train()
    for output in outputs:
        none = torch.arange(len(output["advantages"])) % 4 != 0
        assert output["advantages"][none].abs().sum() == 0
        assert output["value_mask"][none].sum() == 0
        assert output["advantages"].isfinite().all()


def test_under_lora_the_head_is_trained_and_kept_and_merges_away(make, small_teacher, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make(reward=by_rank, peft_config=config, settings={"save_strategy": "steps", "save_steps": 2})
    before = weights_of(trainer.model)
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(CRITIC in name for name in moved)
    assert all("lora_" in name or CRITIC in name for name in moved)
    kept = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert any(CRITIC in name for name in kept)
    whole = trainer.model.merge_and_unload()
    detach_critic(whole)
    assert not any(CRITIC in name for name in whole.state_dict())


def test_the_loss_of_a_separate_critic_does_not_reach_the_policy(make, small_teacher, tmp_path):
    small_teacher.save_pretrained(tmp_path / "teacher")
    classifier = AutoModelForTokenClassification.from_pretrained(tmp_path / "teacher", num_labels=1)
    trainer = make(classifier=classifier, reward=by_rank)
    outputs = batches_of(trainer)
    before = weights_of(trainer.model)
    trainer.train()
    assert outputs[0]["old_values"].abs().sum() == 0  # its head begins at zero
    assert outputs[1]["old_values"].abs().sum() > 0
    after = weights_of(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(f"{CRITIC}.classifier.model.layers" in name for name in moved)
    trainer.model.zero_grad()
    _, values = trainer.log_probs_and_values(outputs[1])
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


def test_vllm_is_not_told_of_the_critic():
    names = [("model.norm.weight", 1), ("value_head.linear.weight", 2), ("lm_head.weight", 3)]
    assert [name for name, _ in without_critic(iter(names))] == ["model.norm.weight", "lm_head.weight"]


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
