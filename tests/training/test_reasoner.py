"""The reasoner trainer end to end, on a model of two layers and a catalog of ten items."""

import json
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.callbacks import train_to_the_end
from anyo_rl.training.reasoner import ReasonerTrainer
from anyo_rl.training.rewards.check import RewardError
from tests.training.helpers import ROWS, G, lift, reasoner, weights_of


class Watch:
    """A reward, 1/rank, that works out what each step should log: by the whole distribution, at the time."""

    __name__ = "watch"

    def __init__(self, catalog, tokens) -> None:
        self.catalog, self.tokens, self.model, self.steps = catalog, tokens, None, []

    def __call__(self, prompts, completion_ids, target_id, **columns):
        contexts = [
            self.tokens.marked_context(self.tokens.context_ids(prompt), ids)
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        ranking = DistributionRanker(self.catalog, self.model).rank(contexts, target_id)
        marked = [self.tokens.marker_id in ids for ids in completion_ids]
        assert 0 < sum(marked) < len(marked), "all are alike: the test shows nothing"
        rewards = [1 / int(rank) if ok else None for rank, ok in zip(ranking.ranks_B, marked, strict=True)]
        log_probs = np.where(marked, ranking.log_probs_B, -np.inf).reshape(-1, G).max(1)
        self.steps.append(
            {
                "reward": np.mean([reward for reward in rewards if reward is not None]),
                "rank/mean": np.mean(ranking.ranks_B),
                "rank/gain": np.mean(1 / np.log2(1 + ranking.ranks_B)),
                "parsed_share": np.mean(marked),
                "ungrounded_share": 1 - np.mean(marked),
                # −log p(target) of the best path of each group; 0 for a group in which none has an answer.
                "item_loss": np.mean(np.where(np.isfinite(log_probs), -log_probs, 0.0)),
            }
        )
        return rewards

    def train(self, trainer: ReasonerTrainer) -> None:
        """Trains, and compares."""
        self.model = trainer.model
        trainer.train()
        logged = [row for row in trainer.state.log_history if "reward" in row]
        assert len(logged) == len(self.steps) == trainer.state.global_step > 0
        for row, expected in zip(logged, self.steps, strict=True):
            assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def watch(small_catalog, small_tokens) -> Watch:
    return Watch(small_catalog, small_tokens)


def test_two_steps_move_the_weights_and_log_what_to_watch(make_reasoner, watch):
    trainer = make_reasoner(reward=watch)
    before = weights_of(trainer.model)
    watch.train(trainer)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name != "lm_head.bias"}


def test_under_lora_only_adapters_move(make_reasoner, watch):
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make_reasoner(reward=watch, peft_config=lora)
    before = weights_of(trainer.model)
    watch.train(trainer)
    for name, parameter in trainer.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora_" in name), name
    assert any("lora_B" in name for name in before)


class Record(TrainerCallback):
    """Keeps what each call of the item loss got and gave, and checks each optimizer step's gradient against it."""

    def __init__(self, trainer: ReasonerTrainer) -> None:
        self.trainer, self.pending, self.used, self.losses, self.steps = trainer, [], [], [], 0
        self.item_loss = trainer._item_loss
        trainer._item_loss = self
        trainer.add_callback(self)

    def __call__(self, model, inputs):
        loss = self.item_loss(model, inputs)
        self.losses.append(slow_item_loss(self.trainer, inputs))
        assert loss.item() == pytest.approx(self.losses[-1], abs=1e-4)
        self.pending.append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
        self.used.append(self.pending[-1])
        return loss

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        model = self.trainer.model
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        rows = sum(len(inputs["item_weight"]) for inputs in self.pending)
        total = sum(slow_weighted_sum(self.trainer, inputs) for inputs in self.pending)
        loss = -self.trainer.objective.item_loss_weight * total / (rows / G)
        expected = torch.autograd.grad(loss, [p for n, p in model.named_parameters() if n in found])
        for (name, gradient), value in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(gradient, value, atol=1e-4, rtol=1e-3, msg=name)
        assert any(gradient.abs().max() > 1e-3 for gradient in found.values())
        self.pending, self.steps = [], self.steps + 1


def contexts_of(inputs) -> list[list[int]]:
    """Prompt and completion of each row, without the padding."""
    both = [torch.cat([inputs[f"{part}_{kind}"] for part in ("prompt", "completion")], 1) for kind in ("ids", "mask")]
    return [ids[mask.bool()].tolist() for ids, mask in zip(*both, strict=True)]


def log_probs_of(trainer, inputs) -> torch.Tensor:
    """log p(target | path) of each row, by the whole distribution."""
    log_probs = DistributionRanker(trainer.catalog, trainer.model).log_probs(contexts_of(inputs))
    return log_probs[torch.arange(len(log_probs)), inputs["item_index"]]


def slow_item_loss(trainer, inputs) -> float:
    """−mean over prompts of Σ w log p(target | path), by the engine."""
    log_p = log_probs_of(trainer, inputs)
    return -float((inputs["item_weight"] * log_p).sum()) / (len(log_p) / G)


def slow_weighted_sum(trainer, inputs) -> torch.Tensor:
    """Σ w log p(target | path) with its gradient: one path and one node at a time."""
    tree, total = trainer.catalog.tree, torch.zeros(())
    for weight, item, context in zip(inputs["item_weight"], inputs["item_index"], contexts_of(inputs), strict=True):
        path = trainer.catalog.paths[int(item)]
        logits = trainer.model(torch.tensor([[*context, *path]])).logits[0, len(context) - 1 :]
        for depth, token in enumerate(path):
            children = tree.token[tree.children(tree.walk(path[:depth]))]
            log_p = logits[depth, torch.from_numpy(children)].log_softmax(0)
            total = total + weight * log_p[children.tolist().index(token)]
    return total


@pytest.mark.parametrize(
    ("item_loss", "rows", "accumulation", "steps_per_generation"),
    [("best", 2 * G, 1, 1), ("all", G, 2, 2), ("best", G, 2, 4), ("mixture", G, 2, 4)],
)
def test_the_item_loss_and_its_gradient_are_those_of_a_slow_computation(
    make_reasoner, item_loss, rows, accumulation, steps_per_generation
):
    settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    settings |= {"steps_per_generation": steps_per_generation, "max_grad_norm": 0.0, "learning_rate": 0.0, "beta": 0.0}
    # Equal rewards: no policy gradient.
    trainer = make_reasoner(item_loss=item_loss, item_loss_weight=0.7, settings=settings)
    record = Record(trainer)
    trainer.train()
    assert record.steps == 2


def test_old_paths_can_be_used_twice(make_reasoner):
    """The second time they have the weights of their sampling, and the item loss that the model has by then."""
    settings = {"per_device_train_batch_size": G, "gradient_accumulation_steps": 1, "steps_per_generation": 2}
    settings |= {"num_iterations": 2, "max_steps": 5, "max_grad_norm": 0.0, "learning_rate": 3e-4}
    trainer = make_reasoner(settings=settings, item_loss="mixture")  # equal rewards: no policy gradient
    trainer.model.lm_head.bias.data[trainer.tokens.marker_id] = 6.0  # no batch may be without an answer
    record = Record(trainer)
    trainer.train()
    assert record.steps == 5
    first, second, first_again, second_again, new = record.used
    for once, twice in ((first, first_again), (second, second_again)):
        for name in ("prompt_ids", "completion_ids", "item_weight", "item_index"):
            assert torch.equal(once[name], twice[name]), name
    assert not torch.equal(first["completion_ids"], second["completion_ids"])
    assert not torch.equal(first["completion_ids"], new["completion_ids"])
    assert first["item_weight"].sum() + second["item_weight"].sum() == pytest.approx(2)  # TRL mixes the two groups
    losses = [row["item_loss"] for row in trainer.state.log_history if "item_loss" in row]
    assert losses == pytest.approx(record.losses, abs=1e-4)
    assert losses[2] < losses[0]
    assert losses[3] < losses[1]


def test_no_item_loss_where_none_is_asked_for(make_reasoner):
    trainer = make_reasoner(item_loss="none", settings={"max_steps": 1})
    trainer._item_loss = lambda *_: pytest.fail("there is no item loss")
    trainer.train()
    assert "item_loss" not in trainer.state.log_history[0]


def test_rewards_get_their_columns(make_reasoner):
    calls = []

    def recording(prompts, completions, completion_ids, **columns):
        calls.append({"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns})
        return [0.0] * len(prompts)

    masked = [replace(row, excluded=row.history) for row in ROWS]
    settings = {"max_steps": 1, "learning_rate": 0.0}
    trainer = make_reasoner(reward=recording, settings=settings, rows=masked)
    trainer.train()
    (call,) = calls
    tokens, catalog = trainer.tokens, trainer.catalog
    assert call["n_items"] == [10] * 2 * G
    marked = [tokens.marker_id in ids for ids in call["completion_ids"]]
    assert 0 < sum(marked) < len(marked)
    rows = {row.prompt: row for row in masked}
    for i, ids in enumerate(call["completion_ids"]):
        row = rows[call["prompts"][i]]
        own = {name: value for name, value in row.columns().items() if name != "prompt"}
        assert {name: call[name][i] for name in own} == own
        assert call["completions"][i] == tokens.decode(ids)
        assert call["completions"][i].endswith("->") == marked[i]
        reasoning = call["completions"][i].split("->")[0]
        assert call["steps"][i] == [line.strip() for line in reasoning.splitlines() if line.strip()]
        found = [call[name][i] for name in ("rank", "gain", "item_id", "log_prob")]
        if not marked[i]:
            assert found == [None] * 4
            continue
        context = [*tokens.context_ids(row.prompt), *ids]
        ranking = DistributionRanker(catalog, trainer.model).rank(
            [context], [row.target_id], top_k=1, excluded_B=[row.history]
        )
        rank = int(ranking.ranks_B[0])
        assert found[0] == rank
        assert found[1] == pytest.approx(1 / np.log2(1 + rank))
        assert found[2] == ranking.top_ids_B_K[0][0]
        assert found[3] == pytest.approx(float(ranking.log_probs_B[0]), abs=1e-4)


def test_a_reward_that_fails_stops_with_its_name(make_reasoner):
    def broken_reward(rank, **columns):
        raise KeyError("no such column")

    with pytest.raises(RewardError, match=r"(?s)broken_reward.*no such column"):
        make_reasoner(reward=broken_reward).train()


def test_a_model_that_does_not_stop_at_the_marker_is_refused(make_reasoner):
    with pytest.raises(ValueError, match="call stop_at_marker before making the trainer"):
        make_reasoner(write_item=True)


def test_a_catalog_of_one_item(small_teacher, small_tokens, tmp_path):
    catalog = build_catalog(pl.DataFrame({"item_id": ["i1"], "title": ["Aliens"]}), small_tokens)
    lift(small_teacher, small_tokens.marker_id)
    rows = [replace(row, target_id="i1", history=[]) for row in ROWS]
    trainer = reasoner(small_teacher, catalog, small_tokens, tmp_path, rows=rows)
    trainer.train()
    assert [row["item_loss"] for row in trainer.state.log_history if "item_loss" in row] == [0, 0]
    assert trainer.state.log_history[0]["rank/mean"] == 1


def test_chat_prompts_with_think_as_the_marker(tmp_path):
    tokenizer = train_tokenizer(["Alien Toy Story mug"] * 3, vocab_size=300)
    tokenizer.add_tokens(["</think>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    tokens = Tokens.of(tokenizer, "</think>")
    catalog = build_catalog(pl.DataFrame({"item_id": ["a", "b"], "title": ["Alien", "Toy Story"]}), tokens)
    seen, watch = [], Watch(catalog, tokens)

    def reward(prompts, completions, rank, **columns):
        seen.extend(zip(prompts, completions, rank, strict=True))
        return watch(prompts, rank=rank, **columns)

    rows = [replace(row, prompt=[{"role": "user", "content": row.prompt}], target_id="b") for row in ROWS]
    model = make_tiny_teacher(tokenizer, hidden_size=32, n_layers=2, n_heads=2, max_length=256)
    lift(model, tokens.marker_id)
    trainer = reasoner(model, catalog, tokens, tmp_path, rows=rows, reward=reward)
    record = Record(trainer)
    record.on_pre_optimizer_step = lambda *args, **kwargs: None  # values only: rewards differ here
    watch.train(trainer)
    assert record.pending
    assert len(seen) == 4 * G
    for prompt, completion, rank in seen:
        assert prompt[0]["role"] == "user"
        assert completion[0]["role"] == "assistant"
        assert "</think>" not in completion[0]["content"]  # people see the arrow
        assert completion[0]["content"].endswith("->") == (rank is not None)
    context = record.pending[0]["prompt_ids"][0][record.pending[0]["prompt_mask"][0].bool()].tolist()
    assert context in [tokens.context_ids(row.prompt) for row in rows]


def slow_greedy_rank(trainer, row) -> int:
    """The target's rank after three tokens at most, each the likeliest."""
    context, tokens = trainer.tokens.context_ids(row.prompt), trainer.tokens
    ids: list[int] = []
    while len(ids) < 3 and not {tokens.marker_id, tokens.eos_id} & set(ids):
        with torch.no_grad():
            ids.append(int(trainer.model(torch.tensor([[*context, *ids]])).logits[0, -1].argmax()))
    ranker = DistributionRanker(trainer.catalog, trainer.model)
    return int(ranker.rank([tokens.marked_context(context, ids)], [row.target_id]).ranks_B[0])


def test_an_evaluation_leaves_the_training_metrics_pending(make_reasoner, capsys):
    settings = {"log_completions": True, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 2}
    trainer = make_reasoner(settings=settings)
    trainer.train()
    history = trainer.state.log_history
    evaluations = [row for row in history if "eval_ndcg@10" in row]
    names = {"eval_ndcg@10", "eval_hr@10", "eval_cut_share", "epoch", "step"}
    assert [set(row) for row in evaluations] == [names] * 2
    assert [row["step"] for row in history if "reward" in row] == [2]
    assert len(list(Path(trainer.args.output_dir, "completions").glob("*.parquet"))) == 1

    trainer.model.train()
    trainer._metrics["train"]["reward"].append(3.0)
    capsys.readouterr()
    found = trainer.evaluate()
    assert capsys.readouterr().out.count("Completion") == 0
    assert trainer._metrics["train"]["reward"] == [3.0]
    assert json.loads(json.dumps(found)) == found
    ranks = np.array([slow_greedy_rank(trainer, row) for row in ROWS])
    expected = {"ndcg@10": np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0), "hr@10": ranks <= 10}
    assert found["eval_cut_share"] == 0
    for name, of_users in expected.items():
        assert found[f"eval_{name}"] == pytest.approx(of_users.mean()), name
    assert trainer.state.log_history[-1]["eval_ndcg@10"] == found["eval_ndcg@10"]


@pytest.mark.slow
def test_resumed_within_a_generation_cycle_the_cycles_after_it_are_those_of_the_unbroken_run(
    small_teacher, small_catalog, small_tokens, tmp_path
):
    rows = [replace(ROWS[i % 4], prompt=f"Toys {i}\n") for i in range(8)]
    cycle = {"per_device_train_batch_size": G, "steps_per_generation": 4, "max_steps": 8}
    saves = {"save_strategy": "steps", "save_steps": 2}

    def train() -> tuple[list[set[str]], list[list[str]]]:
        """Prompts of each generation, and of each step."""
        generated, trained = [], []

        def reward(prompts, **columns):
            generated.append(set(prompts))
            return [1.0] * len(prompts)

        trainer = reasoner(
            small_teacher, small_catalog, small_tokens, tmp_path, rows=rows, reward=reward, settings=cycle | saves
        )
        loss = trainer._compute_loss

        def compute_loss(model, inputs):
            prompts = zip(inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True)
            trained.append([small_tokens.decode(ids[mask].tolist()) for ids, mask in prompts])
            return loss(model, inputs)

        trainer._compute_loss = compute_loss
        train_to_the_end(trainer, tmp_path)
        return generated, trained

    generated, trained = train()
    assert len(generated) == 2
    assert len(generated[0] | generated[1]) == 8
    for step in (4, 6, 8):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    again, trained_again = train()
    assert again == generated  # what is left of the first cycle is sampled anew
    assert len(trained_again) == 6
    # The second one has all of its samples, and none of the first.
    assert sorted(chain(*trained_again[2:])) == sorted(chain(*trained[4:]))


@pytest.mark.slow
def test_what_is_rewarded_becomes_likely(make_reasoner, small_tokens):
    """The sign of the policy gradient, end to end: a token that pays at the start of the reasoning is written more."""
    paid = small_tokens.tokenizer.encode("A", add_special_tokens=False)[0]

    def first_token(completion_ids, **columns):
        return [float(ids[0] == paid) for ids in completion_ids]

    trainer = make_reasoner(
        reward=first_token,
        item_loss="none",
        settings={"max_steps": 12, "learning_rate": 1e-3, "per_device_train_batch_size": 32, "num_generations": 32},
    )
    trainer.model.lm_head.bias.data[paid] = 5.0
    prompts = [small_tokens.context_ids(row.prompt) for row in ROWS]

    def probability() -> float:
        with torch.no_grad():
            rows = [trainer.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[paid].item() for ids in prompts]
        return float(np.mean(rows))

    before = probability()
    trainer.train()
    after = probability()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert before < 0.7
    assert after > before + 0.2
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5])
