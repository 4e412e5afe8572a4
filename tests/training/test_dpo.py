import copy
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from trl import DPOConfig

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.training.dpo import TeacherDPOTrainer, check_paths, dpo_dataset
from anyo_rl.training.loop.callbacks import MetricsFile
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.pairs import preference_pairs
from tests.tables import table_of

ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=prompt, history=[], target_id=target)
    for u, (prompt, target) in enumerate([("Alien\n", "i1"), ("mug\n", "i9"), ("Toys and toys\n", "i4")])
]
BETA = 0.3
GREEDY = How("greedy", Sampling(max_new_tokens=4), top_k=1)
# Of each example a good reasoning, a bad one and one without an end.
STEPS = [(["likes films", "wants 3"], ["likes mugs"]), (["wants mugs"], []), (["toys"], ["likes films", "no toys"])]


@pytest.fixture
def paths(small_tokens):
    rows = []
    for row, (good, bad) in zip(ROWS, STEPS, strict=True):
        for index, (steps, rank) in enumerate([(bad, 8), (good, 1)]):
            ids = small_tokens.reasoning_ids(steps)
            known = {name: getattr(row, name) for name in ("example_id", "prompt", "target_id")}
            rows.append({**known, "sample_index": index, "policy": "sft", "split": "train", "rank": rank})
            rows[-1] |= {"token_ids": ids, "completion": small_tokens.decode(ids), "ranker": "likelihood"}
    return table_of(rows)


@pytest.fixture
def dataset(paths, small_tokens):
    return dpo_dataset(preference_pairs(paths, small_tokens.marker_id, least_gap=0.1).frame, ROWS, small_tokens)


@pytest.fixture
def make_trainer(dataset, small_catalog, small_tokens, tmp_path):
    def make(model, **settings):
        quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
        steps = {"max_steps": 2, "per_device_train_batch_size": 3, "eval_strategy": "steps", "eval_steps": 1}
        args = {"logging_steps": 1, "learning_rate": 1e-3, "beta": BETA, "gradient_checkpointing": False}
        return TeacherDPOTrainer(
            model=model,
            args=DPOConfig(output_dir=str(tmp_path), **{**steps, **quiet, **args, **settings.pop("args", {})}),
            train_dataset=settings.pop("train_dataset", dataset),
            processing_class=small_tokens.tokenizer,
            catalog=small_catalog,
            tokens=small_tokens,
            validation=Validation(
                ROWS, small_catalog, small_tokens, How("greedy", Sampling(max_new_tokens=4), top_k=1)
            ),
            callbacks=[MetricsFile(tmp_path / "metrics.jsonl", "dpo")],
            **settings,
        )

    return make


def completion_log_prob(model, context: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        log_p = model(torch.tensor([context + completion])).logits[0].log_softmax(-1)
    return sum(log_p[len(context) + i - 1, token] for i, token in enumerate(completion))


def slow_loss(model, reference, dataset) -> float:
    """The sigmoid loss of DPO (arXiv 2305.18290, eq. 7), one sequence at a time."""
    losses = []
    for row in dataset:
        ratio = {
            side: completion_log_prob(model, row["prompt_ids"], row[f"{side}_ids"])
            - completion_log_prob(reference, row["prompt_ids"], row[f"{side}_ids"])
            for side in ("chosen", "rejected")
        }
        losses.append(-logsigmoid(BETA * (ratio["chosen"] - ratio["rejected"])).item())
    return float(np.mean(losses))


def item_loss(model, dataset, catalog) -> float:
    contexts = [row["prompt_ids"] + row["chosen_ids"] for row in dataset]
    ranking = LikelihoodRanker(catalog, model).rank(contexts, list(dataset["target_id"]), top_k=1)
    return float(-ranking.log_probs_B.mean())


def logged(folder, key: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def test_ids_are_those_of_tokens_and_texts_are_for_people(dataset, small_tokens):
    assert dataset[0] == {
        "prompt": "Alien\n",
        "chosen": "likes films\nwants 3 ->",
        "rejected": "likes mugs ->",
        "example_id": "u0:1",
        "policy": "sft",
        "target_id": "i1",
        "excluded": [],
        "chosen_gain": 1.0,
        "rejected_gain": pytest.approx(1 / np.log2(9)),
        "prompt_ids": small_tokens.context_ids("Alien\n"),
        "chosen_ids": small_tokens.reasoning_ids(["likes films", "wants 3"]),
        "rejected_ids": small_tokens.reasoning_ids(["likes mugs"]),
    }
    assert dataset["rejected"][1] == "->"  # no reasoning at all


def test_chats_are_pairs_of_messages(paths, small_tokens):
    tokens = copy.copy(small_tokens)
    object.__setattr__(tokens, "tokenizer", copy.deepcopy(small_tokens.tokenizer))
    tokens.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'A:' }}"
    rows = [replace(row, prompt=[{"role": "user", "content": row.prompt}]) for row in ROWS]
    check_paths(paths, rows)
    found = dpo_dataset(preference_pairs(paths, tokens.marker_id, least_gap=0.1).frame, rows, tokens)
    assert found[1]["prompt"] == [{"role": "user", "content": "mug\n"}]
    assert found[1]["chosen"] == [{"role": "assistant", "content": "wants mugs ->"}]
    assert found[1]["prompt_ids"] == tokens.context_ids(rows[1].prompt)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_that_of_a_slow_loop_and_the_weights_move(
    weight, dataset, make_trainer, small_teacher, small_catalog, tmp_path
):
    reference = copy.deepcopy(small_teacher)
    with torch.no_grad():
        reference.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    kept = copy.deepcopy(reference)
    expected = slow_loss(small_teacher, reference, dataset)
    item = item_loss(small_teacher, dataset, small_catalog)
    before = small_teacher.model.layers[0].mlp.down_proj.weight.clone()
    make_trainer(small_teacher, ref_model=reference, item_loss_weight=weight).train()
    losses = logged(tmp_path, "loss")
    assert abs(expected - np.log(2)) > 0.01  # the two models differ, or this would say little
    assert losses[0] == pytest.approx(expected + weight * item, rel=1e-4)
    assert losses[1] < losses[0]
    assert logged(tmp_path, "item_loss")[:1] == ([pytest.approx(item, rel=1e-4)] if weight else [])
    assert not torch.equal(before, small_teacher.model.layers[0].mlp.down_proj.weight)
    for name, parameter in reference.named_parameters():
        assert torch.equal(parameter, dict(kept.named_parameters())[name]), name
    assert len(logged(tmp_path, "eval_ndcg@10")) == 2


def test_without_a_second_model_the_reference_is_the_one_without_its_adapters(dataset, make_trainer, small_teacher):
    start = copy.deepcopy(small_teacher)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(small_teacher, peft_config=lora, args={"learning_rate": 0.1})
    assert trainer.ref_model is None
    trainer.train()
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in trainer.model.named_parameters()
        if "lora_" not in name
    }
    for name, parameter in start.named_parameters():
        assert torch.equal(parameter, frozen[name]), name
    assert any(value.abs().sum() > 0 for name, value in trainer.model.named_parameters() if "lora_B" in name)
    expected = slow_loss(trainer.model.eval(), start, dataset)
    assert abs(expected - np.log(2)) > 0.01
    batch = trainer.data_collator(list(dataset))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-3)


def test_a_pair_that_would_be_cut_is_refused(make_trainer, small_teacher):
    with pytest.raises(ValueError, match=r"a pair takes \d+ tokens and max_length is 5, which would cut"):
        make_trainer(small_teacher, args={"max_length": 5})


def test_paths_of_other_data_are_refused(paths):
    check_paths(paths, ROWS)
    with pytest.raises(ValueError, match="the paths are of split test, expected train"):
        check_paths(paths.with_columns(split=pl.lit("test")), ROWS)
    with pytest.raises(ValueError, match="1 of 3 examples of the paths, such as 'u2:1', are no training examples"):
        check_paths(paths, ROWS[:2])
    with pytest.raises(ValueError, match="has the target 'i1' in the paths and 'i9' in the data"):
        check_paths(paths.with_columns(target_id=pl.lit("i1")), ROWS)
    with pytest.raises(ValueError, match="has another prompt in the paths than here: set history_tokens"):
        check_paths(paths.with_columns(prompt=pl.lit("mug\nAlien\n")), ROWS)
    check_paths(paths.with_columns(prompt=pl.lit(None, pl.String)), ROWS)


def test_pairs_of_another_tokenizer_and_no_pairs_at_all_are_refused(paths, small_tokens):
    pairs = preference_pairs(paths, small_tokens.marker_id, least_gap=0.1).frame
    with pytest.raises(ValueError, match="train the teacher that the paths were sampled from"):
        dpo_dataset(pairs.with_columns(rejected=pl.lit("something else ->")), ROWS, small_tokens)
    with pytest.raises(ValueError, match="no preference pairs: lower least_gap"):
        dpo_dataset(pairs.clear(), ROWS, small_tokens)
