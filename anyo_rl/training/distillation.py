"""On-policy distillation: a small language model reasons, and a teacher says at each token how it would go on.

TRL's `DistillationTrainer` (Agarwal et al., arXiv 2306.13649: generalised Jensen-Shannon divergence on what the small
model wrote itself) on reasonings that end at the marker. Beside it stands the item loss, −log p(target | reasoning)
under the policy that the engine ranks by: tokens of items, of which few can follow one another, are not what a
divergence over the whole vocabulary should be spent on.
"""

from typing import Any

import torch
from trl import DistillationTrainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.item_loss import excluded_items, item_log_prob, unpadded
from anyo_rl.training.loop.throughput import Clock
from anyo_rl.training.loop.validation import Validation, run_validation


class ReasoningDistiller(DistillationTrainer):
    """TRL's trainer with an item loss, and validation by rank in place of an evaluation loss.

    Args:
        catalog: the catalog.
        tokens: tokenizer and marker of both models.
        validation: what is measured at each evaluation.
        item_loss_weight: weight of the item loss; 0 for none.
        *args, **kwargs: as TRL's; rows have `prompt`, `target_id` and `excluded`.

    Raises:
        ValueError: the model does not stop at the marker, or vLLM is asked for.
    """

    def __init__(
        self,
        *args: Any,
        catalog: Catalog,
        tokens: Tokens,
        validation: Validation,
        item_loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if kwargs["args"].use_vllm:
            raise UsageError("use_vllm is set, and on-policy distillation samples with transformers: unset it")
        self.catalog, self.tokens, self.validation = catalog, tokens, validation
        self.item_loss_weight = item_loss_weight
        self.clock = Clock()
        # The trainer insists on an evaluation set; `evaluate` measures ranks instead and never reads it.
        super().__init__(*args, eval_dataset=kwargs["train_dataset"].select([0]), **kwargs)
        if tokens.marker_id not in self.eos_token_ids:
            raise UsageError("the model does not stop at the marker; call stop_at_marker before making the trainer")

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `anyo_rl.training.loop.validation.run_validation`."""
        return run_validation(self, self.validation, metric_key_prefix)

    def _generate(self, *args, **kwargs):
        with self.clock("sampling"):
            return super()._generate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        device = output["completion_ids"].device
        items_B = self.catalog.indices([row["target_id"] for row in inputs])
        output["item_index"] = torch.from_numpy(items_B).to(device)
        output["excluded_items"] = excluded_items(self.catalog, [row["excluded"] for row in inputs]).to(device)
        return output

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's divergence over the tokens of reasonings, and the mean item loss, weighted."""
        loss = super().compute_loss(model, inputs, False, num_items_in_batch)
        self._count_heads(int(inputs["completion_mask"].sum()))
        if self.item_loss_weight:
            item_loss = self._item_loss(model, inputs)
            self._metrics["train"]["item_loss"].append(self.accelerator.gather(item_loss.detach()).mean().item())
            loss = loss + self.item_loss_weight * item_loss / self.current_gradient_accumulation_steps
        return (loss, None) if return_outputs else loss

    def _count_heads(self, n_tokens: int) -> None:
        """FLOPs of both heads, which TRL reads tile by tile and never calls: a tile is made anew for each sum."""
        counter = getattr(self, "flop_counter", None)
        if counter is not None:
            passes = 2 + (0 < self.beta < 1)  # a mean of both models' distributions takes one more
            models = ((self.model, passes + 2), (self.teacher_model, passes))
            for model, times in models:
                head = self.accelerator.unwrap_model(model).get_output_embeddings()
                counter.add(2 * n_tokens * head.weight.numel() * times)

    def _item_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean −log p(target | what was written): one more forward; a reasoning that was cut off answers there."""
        prompts, completions = (unpadded(inputs[f"{of}_ids"], inputs[f"{of}_mask"]) for of in ("prompt", "completion"))
        with self.accelerator.autocast():
            log_p = item_log_prob(
                model,
                self.catalog,
                [self.tokens.marked_context(*one) for one in zip(prompts, completions, strict=True)],
                inputs["item_index"],
                inputs["excluded_items"],
                pad_id=self.tokens.tokenizer.pad_token_id,
            )
        return -log_p.mean()
