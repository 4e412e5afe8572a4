"""On-policy distillation of reasoning, by numbers: what its loss is, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from trl import DistillationConfig

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.make import make_tiny_teacher
from anyo_rl.training.distillation import ReasoningDistiller
from anyo_rl.training.lazy import lazy_dataset


@pytest.fixture
def trainer(small_tokens, small_catalog, tmp_path):
    """A small model and a teacher with other weights, on three prompts."""

    def make(**changes) -> ReasoningDistiller:
        catalog = small_catalog
        student = make_tiny_teacher(small_tokens.tokenizer, hidden_size=16, n_layers=1, seed=1)
        teacher = make_tiny_teacher(small_tokens.tokenizer, hidden_size=32, n_layers=1, seed=2)
        if changes.pop("stops", True):
            stop_at_marker(student, small_tokens)
        titles = catalog.item_ids[:3]
        rows = [Row(f"u{n}:1", f"u{n}", [], item, prompt=f"{item}\n").columns() for n, item in enumerate(titles)]
        own = {"use_cpu": True, "bf16": False, "report_to": "none", "max_completion_length": 5, "seed": 3}
        weight = changes.pop("item_loss_weight", 0.5)
        settings = DistillationConfig(
            str(tmp_path), per_device_train_batch_size=3, beta=0.5, gradient_checkpointing=False, **own | changes
        )
        return ReasoningDistiller(
            model=student,
            teacher_model=teacher,
            args=settings,
            train_dataset=lazy_dataset(rows),
            processing_class=small_tokens.tokenizer,
            catalog=catalog,
            tokens=small_tokens,
            validation=SimpleNamespace(),
            item_loss_weight=weight,
        )

    return make


def test_the_loss_is_the_divergence_over_what_was_written_and_the_mean_item_loss(trainer, small_tokens):
    one = trainer()
    one.model.train()
    one.current_gradient_accumulation_steps = 1
    inputs = one._prepare_inputs([one.train_dataset[n] for n in range(3)])
    loss = one.compute_loss(one.model, dict(inputs))

    one.model.eval()
    written, divergences, contexts = 0, 0.0, []
    for row in range(3):
        prompt, told = (
            inputs[f"{of}_ids"][row][inputs[f"{of}_mask"][row].bool()].tolist() for of in ("prompt", "completion")
        )
        ids = torch.tensor([prompt + told])
        with torch.no_grad():
            p, q = (
                model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().softmax(-1)
                for model in (one.model, one.teacher_model)
            )
        mean = (p + q) / 2
        divergences += sum(float((x * (x / mean).log()).sum()) / 2 for x in (p, q))
        written += len(told)
        contexts.append(small_tokens.marked_context(prompt, told))
    targets = [one.train_dataset[n]["target_id"] for n in range(3)]
    order = inputs["item_index"].tolist()
    ranked = LikelihoodRanker(one.catalog, one.model).rank(contexts, [one.catalog.item_ids[item] for item in order])
    assert sorted(one.catalog.item_ids[item] for item in order) == sorted(targets)
    expected = divergences / written - 0.5 * float(ranked.log_probs_B.mean())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_without_a_weight_there_is_no_item_loss(trainer):
    one = trainer(item_loss_weight=0.0)
    one.model.train()
    inputs = one._prepare_inputs([one.train_dataset[n] for n in range(3)])
    one.compute_loss(one.model, inputs)
    assert "item_loss" not in one._metrics["train"]


def test_what_it_cannot_do_is_refused(trainer):
    with pytest.raises(ValueError, match="samples with transformers: unset it"):
        trainer(use_vllm=True)
    with pytest.raises(ValueError, match="does not stop at the marker"):
        trainer(stops=False)
