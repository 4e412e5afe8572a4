import json
from dataclasses import replace

import pytest
import torch
from trl import SFTConfig

from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer
from anyo_rl.training.item_loss import ItemChoices
from anyo_rl.training.loop.callbacks import MetricsFile
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.sft import SftLoss, TeacherSFTTrainer, sft_dataset

ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=prompt, history=[], target_id=target)
    for u, (prompt, target) in enumerate([("Alien\n", "i1"), ("mug\n", "i9"), ("Toys and toys\n", "i4")])
]
ROWS[2] = replace(ROWS[2], excluded=("i2", "gone"))
RATIONALES = {"u0:1": [("likes -> films", "wants 3")], "u2:1": [()]}


def column(dataset, name):
    return [row[name] for row in dataset]


def test_examples_by_hand(small_catalog, small_tokens):
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, RATIONALES)
    assert len(dataset) == 2  # those with a rationale
    context = small_tokens.context_ids("Alien\n")
    reasoning, path = small_tokens.reasoning_ids(["likes films", "wants 3"]), small_tokens.item_ids("Alien 3")
    assert dataset[0] == {
        "input_ids": [*context, *reasoning, *path],
        "labels": [*[-100] * len(context), *reasoning, *[-100] * len(path)],
        "item": small_catalog.index["i1"],
        "item_start": len(context) + len(reasoning),
        "path": path,
        "excluded": [],
    }
    assert small_tokens.decode([*reasoning, *path]) == "likes films\nwants 3 -> Alien 3"
    row = dataset[1]
    assert row["input_ids"][: row["item_start"]] == [
        *small_tokens.context_ids("Toys and toys\n"),
        small_tokens.marker_id,
    ]
    assert [label for label in row["labels"] if label != -100] == [small_tokens.marker_id]
    assert row["excluded"] == [small_catalog.index["i2"]]  # what is no item of the catalog cannot be ranked


def test_the_direct_teacher_answers_at_once_from_every_example(small_catalog, small_tokens):
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, None)
    assert [small_tokens.decode([t for t in row if t != -100]) for row in column(dataset, "labels")] == [
        "->",
        "->",
        "->",
    ]
    assert [small_catalog.item_ids[item] for item in column(dataset, "item")] == ["i1", "i9", "i4"]


def test_an_example_may_have_several_reasonings(small_catalog, small_tokens):
    several = {"u1:1": [("cups",), ("tea", "a new mug")], "u2:1": [("toys",)]}
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, several)
    assert [small_tokens.decode([t for t in row if t != -100]) for row in column(dataset, "labels")] == [
        "cups ->",
        "tea\na new mug ->",
        "toys ->",
    ]
    assert [small_catalog.item_ids[item] for item in column(dataset, "item")] == ["i9", "i9", "i4"]


def test_early_answers_train_the_item_alone(small_catalog, small_tokens):
    steps = [("one", "two", "three")]
    rationales = {"u0:1": steps * 30, "u2:1": [()]}
    plain = sft_dataset(ROWS, small_catalog, small_tokens, rationales)
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, rationales, early_share=1.0)
    assert len(dataset) == len(plain) + 30  # no steps: nothing to cut
    whole, early = dataset[0], dataset[1:60:2]
    assert whole == plain[0]
    path, context = small_tokens.item_ids("Alien 3"), small_tokens.context_ids("Alien\n")
    assert {label for labels in early["labels"] for label in labels} == {-100}
    assert set(early["item"]) == {small_catalog.index["i1"]}
    expected = {(*context, *small_tokens.reasoning_ids(cut), *path) for cut in ([], ["one"], ["one", "two"])}
    assert set(map(tuple, early["input_ids"])) == expected
    half = sft_dataset(ROWS, small_catalog, small_tokens, rationales, early_share=0.5, seed=1)
    assert len(plain) < len(half) < len(dataset)
    with pytest.raises(ValueError, match="early_answer_share is 2: expected 0 to 1"):
        sft_dataset(ROWS, small_catalog, small_tokens, rationales, early_share=2)


def test_an_item_first_comes_with_its_reasoning_after_it(small_catalog, small_tokens):
    """What rationales teach one who does not read them: all examples, and the rationale where there is one."""
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, {"u1:1": [("cups", "tea"), ("tea",)]}, item_first=True)
    context, path = small_tokens.context_ids("mug\n"), small_tokens.item_ids("mug")
    told = small_tokens.reasoning_ids(["cups", "tea"])
    assert len(dataset) == 4  # of several reasonings each is an example
    row = dataset[1]
    assert row["input_ids"] == [*context, small_tokens.marker_id, *path, *told]
    assert row["labels"] == [*[-100] * len(context), small_tokens.marker_id, *[-100] * len(path), *told]
    assert row["item_start"] == len(context) + 1
    others = sft_dataset(ROWS, small_catalog, small_tokens, None)
    assert [dataset[0], dataset[3]] == [others[0], others[2]]


def test_no_rationale_at_all_is_refused(small_catalog, small_tokens):
    with pytest.raises(ValueError, match="none of the 3 training examples has a rationale; raise rationale_share"):
        sft_dataset(ROWS, small_catalog, small_tokens, {"elsewhere:1": [("a",)]})
    with pytest.raises(ValueError, match="none of the 0"):
        sft_dataset([], small_catalog, small_tokens, None)


def item_nll(teacher, catalog, row, kind):
    """−log p(item) the slow way: among what goes on to an item that is not excluded, or among the whole vocabulary."""
    with torch.no_grad():
        logits = teacher(torch.tensor([row["input_ids"]])).logits[0].double()
    path, nll = catalog.paths[row["item"]], 0.0
    kept = [catalog.paths[i] for i in range(len(catalog)) if i not in row["excluded"]]
    for depth, token in enumerate(path):
        allowed = sorted({other[depth] for other in kept if other[:depth] == path[:depth] and len(other) > depth})
        of_step = logits[row["item_start"] - 1 + depth]
        nll -= of_step[token] - (of_step[allowed] if kind == "constrained" else of_step).logsumexp(0)
    return float(nll)


@pytest.mark.parametrize("kind", ["constrained", "tokens"])
def test_two_steps_minimise_both_means_and_measure_ranks(kind, small_catalog, small_tokens, small_teacher, tmp_path):
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, {"u1:1": [("cups", "tea")], "u2:1": [("toys",)]})
    total, count = 0.0, 0
    for row in dataset:  # the reasonings' loss by hand: mean over their tokens, the marker's too
        with torch.no_grad():
            log_p = small_teacher(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - log_p[position - 1, label].item(), count + 1
    items = sum(item_nll(small_teacher, small_catalog, row, kind) for row in dataset) / len(dataset)
    validation = Validation(ROWS, small_catalog, small_tokens, How("greedy", Sampling(max_new_tokens=4), top_k=1))
    # One batch of two, or two batches of one in a step: the same loss.
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "steps", "eval_steps": 1}
    if kind == "tokens":
        settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    trainer = TeacherSFTTrainer(
        model=small_teacher,
        args=SFTConfig(output_dir=str(tmp_path), logging_steps=1, learning_rate=1e-3, **settings, **quiet),
        train_dataset=dataset,
        processing_class=small_tokens.tokenizer,
        catalog=small_catalog,
        validation=validation,
        loss=SftLoss(kind, item_weight=0.3, reasoning_weight=0.5),
        callbacks=[MetricsFile(tmp_path / "metrics.jsonl", "sft")],
    )
    before = small_teacher.model.layers[0].mlp.down_proj.weight.clone()
    trainer.train()
    assert not torch.equal(before, small_teacher.model.layers[0].mlp.down_proj.weight)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in logged if "loss" in row]
    assert steps[0]["item_loss"] == pytest.approx(items, rel=1e-4)
    assert steps[0]["loss"] == pytest.approx(0.5 * total / count + 0.3 * items, rel=1e-4)
    assert steps[1]["loss"] < steps[0]["loss"]

    found = trainer.evaluate()
    sampler, ranker = TransformersSampler(small_teacher, small_tokens), LikelihoodRanker(small_catalog, small_teacher)
    ranks = answer(ROWS, ranker, sampler, small_tokens, How("greedy", Sampling(max_new_tokens=4))).ranks_U
    assert found["eval_ndcg@10"] == pytest.approx(ndcg(ranks, 10).mean())
    assert found["eval_hr@10"] == (ranks <= 10).mean()
    assert [row["step"] for row in logged if "eval_ndcg@10" in row] == [1, 2]


def test_tokens_of_a_short_item_are_read_at_their_own_places(small_catalog, small_tokens):
    short, long = (small_tokens.item_ids(small_catalog.titles[item]) for item in (0, 4))  # Alien, Toy Story 2
    assert len(short) < len(long)
    choices = ItemChoices.of_tokens([small_catalog.paths[item] for item in (0, 4)])
    behind = len(long) - len(short)
    assert choices.depth_B_S.tolist() == [[*range(len(short)), *[0] * behind], [*range(len(long))]]
    assert choices.child_B_S.tolist() == [[*short, *[-100] * behind], long]


def test_weights_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="weights of 0 for items and 0 for reasonings"):
        SftLoss(item_weight=0, reasoning_weight=0)
    with pytest.raises(ValueError, match="weights of -1 for items"):
        SftLoss(item_weight=-1)


@pytest.mark.parametrize("setting", ["packing", "padding_free"])
def test_batches_that_move_the_items_are_refused(setting, small_catalog):
    args = SFTConfig(report_to="none", use_cpu=True, bf16=False, **{setting: True})
    with pytest.raises(ValueError, match="unset both"):
        TeacherSFTTrainer(catalog=small_catalog, validation=None, args=args)
