"""DPO on reasonings: our own token ids, TRL's `DPOTrainer`, validation by rank.

TRL would tokenise prompt, chosen and rejected anew, and not as they were sampled: it splits prompt and completion
where their texts tell, adds an end-of-sequence token, and reads `->` as characters where the marker is another token.
The dataset has texts for people and other tools, and beside them the ids that are trained on; `_prepare_dataset`
leaves these alone. Collator and loss are TRL's.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
import torch
from datasets import Dataset
from trl import DPOTrainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import Prompt
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.item_loss import excluded_items, item_log_prob
from anyo_rl.training.loop.validation import Validation, run_validation

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")  # what TRL's collator reads


def check_paths(paths: pl.DataFrame, rows: Sequence[Row]) -> None:
    """Checks that paths are of training examples as they are now.

    Args:
        paths: a paths table.
        rows: the training examples (`anyo_rl.reasoning.rows.make_rows`).

    Raises:
        ValueError: a path is of another split or example, or its prompt or target is another; says how many.
    """
    splits = sorted(set(paths["split"].drop_nulls()) - {"train"})
    if splits:
        raise UsageError(
            f"the paths are of split {', '.join(splits)}, expected train: pairs from held-out users would leak them"
        )
    known = {row.example_id: row for row in rows}
    found = paths.select("example_id", "target_id", "prompt").unique(maintain_order=True).to_dicts()
    strange = [path["example_id"] for path in found if path["example_id"] not in known]
    if strange:
        raise UsageError(
            f"{len(set(strange))} of {len({path['example_id'] for path in found})} examples of the paths, such as "
            f"{strange[0]!r}, are no training examples: sample paths of the training split, with the same data "
            f"settings as here"
        )
    for path in found:
        row = known[path["example_id"]]
        if path["target_id"] != row.target_id:
            raise UsageError(
                f"example {path['example_id']!r} has the target {path['target_id']!r} in the paths and "
                f"{row.target_id!r} in the data: they are of other data, sample them anew"
            )
        if path["prompt"] is not None and path["prompt"] != row.prompt_text:
            raise UsageError(
                f"example {path['example_id']!r} has another prompt in the paths than here: set history_tokens, "
                f"max_history, history_as and prompt_style as they were when the paths were sampled, or sample them "
                f"anew"
            )


def dpo_dataset(pairs: pl.DataFrame, rows: Sequence[Row], tokens: Tokens) -> Dataset:
    """Preference pairs as TRL has them, with the token ids that are trained on.

    Args:
        pairs: preference pairs (`anyo_rl.training.pairs.preference_pairs`).
        rows: the training examples (`anyo_rl.reasoning.rows.make_rows`), those of the pairs among them.
        tokens: the teacher's tokenizer and marker.

    Returns:
        A dataset with `prompt`, `chosen`, `rejected` (texts, or messages where prompts are chats), `prompt_ids`,
        `chosen_ids`, `rejected_ids`, `example_id`, `policy`, `target_id`, `excluded`, `chosen_gain` and
        `rejected_gain`.

    Raises:
        ValueError: there are no pairs, or their ids do not spell their texts by this tokenizer.
    """
    if pairs.is_empty():
        raise UsageError("no preference pairs: lower least_gap, or sample more paths of each example")
    known = {row.example_id: row for row in rows}
    encoded = []
    for pair in pairs.iter_rows(named=True):
        prompt = known[pair["example_id"]].prompt
        texts = {side: tokens.decode(pair[f"{side}_ids"]) for side in ("chosen", "rejected")}
        for side, text in texts.items():
            if not pair[side].startswith(text):
                raise UsageError(
                    f"the {side} path of example {pair['example_id']!r} is {pair[side]!r}, and its token ids spell "
                    f"{text!r} by this teacher's tokenizer: train the teacher that the paths were sampled from"
                )
        encoded.append(
            {
                "prompt": prompt,
                **{side: _completion(text, prompt) for side, text in texts.items()},
                **{name: pair[name] for name in ("example_id", "policy", "target_id", "chosen_gain", "rejected_gain")},
                "excluded": list(known[pair["example_id"]].excluded),
                "prompt_ids": tokens.context_ids(prompt),
                **{name: pair[name] for name in ("chosen_ids", "rejected_ids")},
            }
        )
    return Dataset.from_list(encoded)


def _completion(text: str, prompt: Prompt) -> Prompt:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


class TeacherDPOTrainer(DPOTrainer):
    """TRL's DPO trainer on given token ids, with validation by rank and an item loss for the answer.

    DPO moves the reasoning alone. The item loss is the mean of −log p(target | chosen reasoning), as in
    `anyo_rl.training.reasoner`: one more forward, over half of a batch.

    Args:
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        validation: what is measured at each evaluation.
        item_loss_weight: weight of the item loss beside DPO's; 0 for none.
        train_dataset: what `dpo_dataset` gives.
        *args, **kwargs: as TRL's.

    Raises:
        ValueError: a pair is longer than `max_length`: what is cut off would be the reasoning's end and its marker.
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        catalog: Catalog,
        tokens: Tokens,
        validation: Validation,
        train_dataset: Dataset,
        item_loss_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.catalog = catalog
        self.tokens = tokens
        self.validation = validation
        self.item_loss_weight = item_loss_weight
        max_length = kwargs["args"].max_length
        longest = max(
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in train_dataset
        )
        if max_length is not None and longest > max_length:
            raise UsageError(
                f"a pair takes {longest} tokens and max_length is {max_length}, which would cut its reasoning off; "
                f"raise max_length or lower history_tokens"
            )
        super().__init__(
            *args,
            train_dataset=train_dataset,
            # The trainer insists on an evaluation set; `evaluate` measures ranks instead and never reads it.
            eval_dataset=train_dataset.select([0]),
            **kwargs,
        )
        collate = self.data_collator
        self.data_collator = lambda pairs: {
            **collate(pairs),
            "item_index": torch.from_numpy(catalog.indices([pair["target_id"] for pair in pairs])),
            "excluded_items": excluded_items(catalog, [pair["excluded"] for pair in pairs]),
        }

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # it has its token ids

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [*IDS, "ref_chosen_logps", "ref_rejected_logps", "target_id", "excluded"]

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `anyo_rl.training.loop.validation.run_validation`."""
        return run_validation(self, self.validation, metric_key_prefix)

    def _compute_loss(self, model, inputs, return_outputs):
        items, excluded = inputs.pop("item_index"), inputs.pop("excluded_items")
        loss = super()._compute_loss(model, inputs, return_outputs)
        if not self.item_loss_weight:
            return loss
        n = len(items)  # the chosen ones come first
        chosen = zip(inputs["input_ids"][:n], inputs["attention_mask"][:n].bool(), strict=True)
        log_p = item_log_prob(
            model,
            self.catalog,
            [ids[mask].tolist() for ids, mask in chosen],
            items,
            excluded,
            pad_id=self.tokens.tokenizer.pad_token_id,
        )
        item_loss = -log_p.mean()
        self._metrics["train"]["item_loss"].append(self.accelerator.gather(item_loss.detach()).mean().item())
        return loss + self.item_loss_weight * item_loss
