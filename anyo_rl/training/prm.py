"""Training of a PRM: a token classifier made from the teacher, on soft labels at the ends of steps.

The loss is the binary cross-entropy with the value of the state, which is least where the score is its mean. All other
tokens have no label. Everything else is transformers' `Trainer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa
import torch
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import ModelConfig, get_quantization_config

from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.lazy import STORED, as_stored, lazy_dataset
from anyo_rl.values.prm import IGNORED, inputs_of, labelled_example, padded

LOSS = "eval_loss"  # chooses the checkpoint


def load_classifier(model_args: ModelConfig) -> PreTrainedModel:
    """The teacher's body under a new head of one number for each token, drawn by torch's seed.

    Raises:
        ValueError: the path holds no model.
    """
    path = model_args.model_name_or_path
    try:
        return AutoModelForTokenClassification.from_pretrained(
            path,
            revision=model_args.model_revision,
            num_labels=1,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation or "sdpa",
            quantization_config=get_quantization_config(model_args),
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no teacher at {path!r} that a PRM can be made from: expected a model folder with config.json and "
            f"model.safetensors, of an architecture that transformers has a token classifier for ({error})"
        ) from error


def prm_dataset(labels: pl.DataFrame, tokens: Tokens) -> Dataset:
    """Labelled paths (`anyo_rl.values.prm.label_paths`) as `input_ids` and `labels`."""
    labels = labels.select("prompt_ids", "token_ids", "step_values")
    lengths = labels.select(pl.col("prompt_ids").list.len() + pl.col("token_ids").list.len()).to_series()
    return lazy_dataset(_Labelled(labels.to_arrow(compat_level=pl.CompatLevel.newest()), tokens), lengths.to_numpy())


@dataclass(frozen=True)
class _Labelled:
    """Labelled paths as a trainer reads them; the table is that of the labels, and not copied."""

    table: pa.Table
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Mapping[str, object]:
        (row,) = self.table.slice(number, 1).to_pylist()
        return labelled_example(row["prompt_ids"], row["token_ids"], row["step_values"], self.tokens)


def collate(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """A batch of what `prm_dataset` has, padded on the right."""
    ids, mask = padded([row["input_ids"] for row in rows], pad_id)
    labels = torch.full(ids.shape, IGNORED)
    for of_row, row in zip(labels, rows, strict=True):
        of_row[: len(row["labels"])] = torch.tensor(row["labels"])
    return {**inputs_of(ids, mask), "labels": labels}


def step_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean binary cross-entropy over labelled tokens.

    Args:
        outputs: of the model, with (B, W, 1) logits.
        labels: (B, W) values in [0, 1], and −100 where there is none.
        num_items_in_batch: labelled tokens of all that one update sees; those of this batch if `None`.
    """
    labelled = labels != IGNORED
    logits = outputs.logits[..., 0].float()[labelled]
    total = F.binary_cross_entropy_with_logits(logits, labels[labelled], reduction="sum")
    return total / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)


class PrmTrainer(Trainer):
    """transformers' trainer with `step_loss`, which is also what is measured on validation.

    Args:
        model: what `load_classifier` gives.
        processing_class: its tokenizer.
        peft_config: adapters, which the head is trained with; `None` trains all weights.
        **kwargs: as the trainer's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model=model if peft_config is None else get_peft_model(model, peft_config),
            processing_class=processing_class,
            data_collator=partial(collate, pad_id=processing_class.pad_token_id),
            compute_loss_func=step_loss,
            **kwargs,
        )

    def _set_signature_columns_if_needed(self):
        self._signature_columns = list(STORED)

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(as_stored(train_dataset or self.train_dataset))

    def _get_eval_sampler(self, eval_dataset):
        return super()._get_eval_sampler(as_stored(eval_dataset))
