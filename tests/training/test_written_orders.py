"""GRPO on written orders, and SFT on them: the order is a part of the action, and its tokens are what is taught."""

import pytest
import torch

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.ranking.orders import OrderRanker
from anyo_rl.reasoning.kinds.candidates import Listed, answers_of
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.sft import IGNORED, SftLoss, TeacherSFTTrainer, sft_dataset
from tests.training.helpers import QUIET, G, reasoner

ITEMS = ["i0", "i4", "i9"]
ROWS = [
    Row(
        f"u{u}:1", f"u{u}", ["i0"], target, prompt=f"{target}\n", listed=ITEMS, learned=["2", "1", "3"], excluded=["4"]
    )
    for u, target in enumerate(["2", "3"])
]


@pytest.fixture
def answers(small_tokens):
    return build_catalog(answers_of(False, Listed(n_candidates=4, window=4, stride=2)), small_tokens)


def test_orders_are_written_freely_and_ranked(small_teacher, small_tokens, answers, tmp_path):
    calls = []

    def by_gain(completions, gain, **columns):
        calls.append({"completions": completions, "gain": gain, **columns})
        return [0.0 if one is None else one for one in gain]

    trainer = reasoner(
        *(small_teacher, answers, small_tokens, tmp_path),
        rows=ROWS,
        reward=by_gain,
        settings={"max_steps": 2, "max_completion_length": 12},
        write_item=True,
        written_ranker=OrderRanker(answers),
        item_loss="none",
    )
    told = ["likes -> [2] > [1] > [3]", "-> [3]", "-> none", "[2] > [1]"]
    ids = [
        [
            token
            for part in text.split("->")
            for token in (*small_tokens.tokenizer.encode(part), small_tokens.marker_id)
        ]
        for text in told
    ]
    ids = [[*one[:-1], small_tokens.eos_id] for one in ids]  # the marker between the parts alone
    scored = trainer._score([ROWS[0]] * 4, ids, [None] * 4)
    assert scored.marked_B == [True, True, False, False]
    assert scored.ranking.ranks_B.tolist() == [1, 3, 2, 2]
    columns = scored.columns(len(answers))
    assert [column["rank"] for column in columns] == [1, 3, None, None]
    assert [column["item_id"] for column in columns] == ["2", "3", None, None]
    trainer.train()
    assert len(calls) == 2
    logged = trainer.state.log_history[0]
    assert {"order/as_it_came", "order/unread", "order/missing", "order/repeated", "order/unknown"} <= set(logged)
    assert trainer.rollout_func is None
    assert all(len(call["completions"]) == 2 * G for call in calls)


def test_sft_teaches_the_tokens_of_the_whole_order(small_teacher, small_tokens, answers, tmp_path):
    rationales = {row.example_id: [("likes tea",)] for row in ROWS}
    dataset = sft_dataset(ROWS, answers, small_tokens, rationales)
    (first, _) = [dataset[i] for i in range(2)]
    path = small_tokens.item_ids("[2] > [1] > [3]")
    assert first["path"] == path == first["input_ids"][first["item_start"] :]
    assert (first["item"], first["excluded"]) == (1, [3])
    assert first["labels"][first["item_start"] :] == [IGNORED] * len(path)
    how = How("greedy", Sampling(max_new_tokens=3), top_k=1)
    losses = {}
    for item in ("tokens", "constrained"):
        from trl import SFTConfig

        trainer = TeacherSFTTrainer(
            model=small_teacher,
            args=SFTConfig(
                output_dir=str(tmp_path / item), max_steps=1, learning_rate=0.0, eval_strategy="no", **QUIET
            ),
            train_dataset=dataset,
            processing_class=small_tokens.tokenizer,
            catalog=answers,
            validation=Validation(ROWS, answers, small_tokens, how),
            loss=SftLoss(item, 1.0, 0.0),
        )
        trainer.model.eval()
        with torch.no_grad():
            batch = trainer.data_collator([dataset[0]])
            losses[item] = trainer.compute_loss(trainer.model, batch).item()
    ids = torch.tensor([first["input_ids"]])
    with torch.no_grad():
        log_p = trainer.model(input_ids=ids).logits[0].log_softmax(-1)
    start = first["item_start"]
    by_hand = -sum(log_p[start - 1 + at, token].item() for at, token in enumerate(path))
    assert losses["tokens"] == pytest.approx(by_hand, rel=1e-4)
    assert losses["constrained"] < losses["tokens"]
