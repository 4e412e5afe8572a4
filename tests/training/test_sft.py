import json

import pytest
import torch
from trl import SFTConfig

from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer
from anyo_rl.training.loop.callbacks import MetricsFile
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.sft import TeacherSFTTrainer, sft_dataset

ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=prompt, history=[], target_id=target)
    for u, (prompt, target) in enumerate([("Alien\n", "i1"), ("mug\n", "i9"), ("Toys and toys\n", "i4")])
]
RATIONALES = {"u0:1": [("likes -> films", "wants 3")], "u2:1": [()]}


def test_examples_by_hand(small_catalog, small_tokens):
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, RATIONALES)
    assert len(dataset) == 2  # those with a rationale
    context = small_tokens.context_ids("Alien\n")
    completion = [*small_tokens.reasoning_ids(["likes films", "wants 3"]), *small_tokens.item_ids("Alien 3")]
    assert dataset[0] == {"input_ids": context + completion, "labels": [-100] * len(context) + completion}
    assert small_tokens.decode(completion) == "likes films\nwants 3 -> Alien 3"
    context = small_tokens.context_ids("Toys and toys\n")
    completion = [small_tokens.marker_id, *small_tokens.item_ids("Toy Story 2")]
    assert dataset[1] == {"input_ids": context + completion, "labels": [-100] * len(context) + completion}


def test_the_direct_teacher_answers_at_once_from_every_example(small_catalog, small_tokens):
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, None)
    assert [small_tokens.decode([t for t in row if t != -100]) for row in dataset["labels"]] == [
        "-> Alien 3",
        "-> mug",
        "-> Toy Story 2",
    ]


def test_an_example_may_have_several_reasonings(small_catalog, small_tokens):
    several = {"u1:1": [("cups",), ("tea", "a new mug")], "u2:1": [("toys",)]}
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, several)
    assert [small_tokens.decode([t for t in row if t != -100]) for row in dataset["labels"]] == [
        "cups -> mug",
        "tea\na new mug -> mug",
        "toys -> Toy Story 2",
    ]


def test_early_answers_train_the_item_alone(small_catalog, small_tokens):
    steps = [("one", "two", "three")]
    rationales = {"u0:1": steps * 30, "u2:1": [()]}
    plain = sft_dataset(ROWS, small_catalog, small_tokens, rationales)
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, rationales, early_share=1.0)
    assert len(dataset) == len(plain) + 30  # no steps: nothing to cut
    whole, early = dataset[0], dataset[1:60:2]
    assert whole == plain[0]
    path, context = small_tokens.item_ids("Alien 3"), small_tokens.context_ids("Alien\n")
    assert {tuple(t for t in labels if t != -100) for labels in early["labels"]} == {tuple(path)}
    expected = {(*context, *small_tokens.reasoning_ids(cut), *path) for cut in ([], ["one"], ["one", "two"])}
    assert set(map(tuple, early["input_ids"])) == expected
    half = sft_dataset(ROWS, small_catalog, small_tokens, rationales, early_share=0.5, seed=1)
    assert len(plain) < len(half) < len(dataset)
    with pytest.raises(ValueError, match="early_answer_share is 2: expected 0 to 1"):
        sft_dataset(ROWS, small_catalog, small_tokens, rationales, early_share=2)


def test_no_rationale_at_all_is_refused(small_catalog, small_tokens):
    with pytest.raises(ValueError, match="none of the 3 training examples has a rationale; raise rationale_share"):
        sft_dataset(ROWS, small_catalog, small_tokens, {"elsewhere:1": [("a",)]})
    with pytest.raises(ValueError, match="none of the 0"):
        sft_dataset([], small_catalog, small_tokens, None)


def test_two_steps_train_the_completion_only_and_measure_ranks(small_catalog, small_tokens, small_teacher, tmp_path):
    dataset = sft_dataset(ROWS, small_catalog, small_tokens, None)
    total, count = 0.0, 0
    for row in dataset:  # the loss by hand: mean over the tokens after the context
        with torch.no_grad():
            log_p = small_teacher(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - log_p[position - 1, label].item(), count + 1
    validation = Validation(ROWS, small_catalog, small_tokens, How("greedy", Sampling(max_new_tokens=4), top_k=1))
    settings = {"max_steps": 2, "per_device_train_batch_size": 3, "eval_strategy": "steps", "eval_steps": 1}
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    trainer = TeacherSFTTrainer(
        model=small_teacher,
        args=SFTConfig(output_dir=str(tmp_path), logging_steps=1, learning_rate=1e-3, **settings, **quiet),
        train_dataset=dataset,
        processing_class=small_tokens.tokenizer,
        validation=validation,
        callbacks=[MetricsFile(tmp_path / "metrics.jsonl", "sft")],
    )
    before = small_teacher.model.layers[0].mlp.down_proj.weight.clone()
    trainer.train()
    assert not torch.equal(before, small_teacher.model.layers[0].mlp.down_proj.weight)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert losses[0] == pytest.approx(total / count, rel=1e-3)
    assert losses[1] < losses[0]

    found = trainer.evaluate()
    sampler, ranker = TransformersSampler(small_teacher, small_tokens), LikelihoodRanker(small_catalog, small_teacher)
    ranks = answer(ROWS, ranker, sampler, small_tokens, How("greedy", Sampling(max_new_tokens=4))).ranks_U
    assert found["eval_ndcg@10"] == pytest.approx(ndcg(ranks, 10).mean())
    assert found["eval_hr@10"] == (ranks <= 10).mean()
    assert found["eval_mrr"] == pytest.approx((1 / ranks).mean())
    assert [row["step"] for row in logged if "eval_ndcg@10" in row] == [1, 2]
