"""The supervised start: TRL's `SFTTrainer` on reasonings, and a loss of its own for the item after them."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from datasets import Dataset
from trl import SFTTrainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.ranking.order import write_order
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.policy import causal_lm, head_logits, last_hidden
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.item_loss import ItemChoices
from anyo_rl.training.lazy import STORED, as_stored, lazy_dataset
from anyo_rl.training.loop.validation import Validation, run_validation

IGNORED = -100
ALL = -1  # steps of a reasoning: none is cut off
CHOICES = [field.name for field in fields(ItemChoices)]
SftItemLoss = Literal["constrained", "tokens"]


@dataclass(frozen=True)
class SftLoss:
    """What SFT minimises: the mean over the reasonings' tokens, and the mean over the items, each with its weight.

    Attributes:
        item: `constrained` is −log p(item) under the policy that the engine ranks by, where only tokens that go on to
            an item of the catalog count and those of excluded items do not. `tokens` is the sum of −log p over the
            item's tokens among the whole vocabulary, which teachers that *write* their items need.
        item_weight: of the items. One answer weighs this much beside one token of reasoning, so a large weight
            teaches few targets by heart.
        reasoning_weight: of the reasonings, their markers included.

    Raises:
        ValueError: a weight is negative, or both are zero.
    """

    item: SftItemLoss = "constrained"
    item_weight: float = 0.1
    reasoning_weight: float = 1.0

    def __post_init__(self) -> None:
        if min(self.item_weight, self.reasoning_weight) < 0 or not self.item_weight + self.reasoning_weight:
            raise UsageError(
                f"found weights of {self.item_weight} for items and {self.reasoning_weight} for reasonings in SFT; "
                "expected 0 or more, and one above 0"
            )


def sft_dataset(
    rows: Sequence[Row],
    catalog: Catalog,
    tokens: Tokens,
    rationales: Mapping[str, Sequence[Sequence[str]]] | None,
    *,
    item_first: bool = False,
    early_share: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Examples as token ids, with labels on reasoning and marker, and with the item after them.

    Args:
        rows: training examples; those with a hinted prompt read that.
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        rationales: example id to its reasonings, each of steps; examples without are left out. `None` for the
            `direct` teacher, which learns to answer at once from every example.
        item_first: answer at once from every example, and write the reasoning after it where there is one: what
            rationales teach a teacher that does not read them. Of several reasonings each is an example.
        early_share: share of the reasonings, in [0, 1], of which there is a second copy that is cut after a number of
            steps, each number alike from none to all but the last. It has no labels: the teacher learns to answer
            early where it is asked to, and not to end its reasoning early.
        seed: of these draws.

    Returns:
        A dataset with `input_ids` (context, reasoning, marker, item path) and `labels`, as TRL's SFT trainer takes
        it, and for each row the `item` and the items `excluded` by index, its `path`, and `item_start`, tokens before
        the item. Where rows teach an order of answers the path is that of the whole order, and the item its first.
        Each row is made when it is drawn; all are made once here, for their lengths.

    Raises:
        ValueError: no example has a rationale, or the share is out of its range.
    """
    if not 0 <= early_share <= 1:
        raise UsageError(f"early_answer_share is {early_share}: expected 0 to 1")
    rng = np.random.default_rng(seed)
    lessons = _Lessons(rows, catalog, tokens, rationales, item_first)
    row_R, reasoning_R, n_steps_R, length_R = (array("i") for _ in range(4))
    for number, row in enumerate(rows):
        for which, steps in enumerate(lessons.reasonings(row)):
            cuts = [ALL]
            if not item_first and steps and rng.random() < early_share:
                cuts.append(int(rng.integers(len(steps))))
            for n_steps in cuts:
                row_R.append(number)
                reasoning_R.append(which)
                n_steps_R.append(n_steps)
                length_R.append(len(lessons.of(row, which, n_steps)["input_ids"]))
    if not row_R:
        raise UsageError(
            f"none of the {len(rows)} training examples has a rationale; raise rationale_share, or train a "
            f"direct teacher"
        )
    lessons.plan_R_3 = np.stack([np.asarray(column) for column in (row_R, reasoning_R, n_steps_R)], axis=1)
    return lazy_dataset(lessons, np.asarray(length_R))


class _Lesson(TypedDict):
    """One of them; see `sft_dataset`."""

    input_ids: list[int]
    labels: list[int]
    item: int
    item_start: int
    path: list[int]
    excluded: list[int]


class _Lessons:
    """What SFT teaches, row by row as token ids. See `sft_dataset`; `plan_R_3` has row, reasoning and cut of each."""

    def __init__(
        self,
        rows: Sequence[Row],
        catalog: Catalog,
        tokens: Tokens,
        rationales: Mapping[str, Sequence[Sequence[str]]] | None,
        item_first: bool,
    ) -> None:
        self.rows, self.catalog, self.tokens = rows, catalog, tokens
        self.rationales, self.item_first = rationales, item_first
        self.plan_R_3 = np.zeros((0, 3), np.int32)

    def __len__(self) -> int:
        return len(self.plan_R_3)

    def __getitem__(self, lesson: int) -> _Lesson:
        number, which, n_steps = map(int, self.plan_R_3[lesson])
        return self.of(self.rows[number], which, n_steps)

    def reasonings(self, row: Row) -> Sequence[Sequence[str]]:
        """The reasonings of an example; one without steps where it answers at once."""
        if self.rationales is None:
            return [()]
        return self.rationales.get(row.example_id, [()] if self.item_first else [])

    def of(self, row: Row, which: int, n_steps: int) -> _Lesson:
        """A reasoning of an example as a teacher reads it, or its first steps without labels."""
        catalog, tokens = self.catalog, self.tokens
        whole = self.reasonings(row)[which]
        steps, after = ((), whole) if self.item_first else (whole if n_steps == ALL else whole[:n_steps], ())
        answer = row.learned[0] if row.learned else row.target_id
        context, item = tokens.context_ids(row.sampled_prompt), catalog.index[answer]
        reasoning = tokens.reasoning_ids(map(tokens.safe_text, steps), context)
        path = list(catalog.paths[item])
        if len(row.learned) > 1:
            path = tokens.item_ids(write_order(catalog.indices(list(row.learned)).tolist()))
        told = tokens.reasoning_ids(map(tokens.safe_text, after)) if after else []
        before = [*[IGNORED] * len(context), *(reasoning if n_steps == ALL else [IGNORED] * len(reasoning))]
        return {
            "input_ids": [*context, *reasoning, *path, *told],
            "labels": [*before, *[IGNORED] * len(path), *told],
            "item": item,
            "item_start": len(before),
            "path": path,
            "excluded": catalog.known(row.excluded),
        }


class TeacherSFTTrainer(SFTTrainer):
    """TRL's SFT trainer with a loss of its own for items, and validation by rank in place of an evaluation loss.

    The item's loss is read off in TRL's own forward. Packing and padding-free batches would move the items' places.

    Args:
        catalog: the catalog.
        validation: what is measured at each evaluation.
        loss: what is minimised.
        *args, **kwargs: as TRL's; the dataset is one of `sft_dataset`.

    Raises:
        ValueError: packing or padding-free batches.
    """

    data_collator: Any

    def __init__(
        self, *args: Any, catalog: Catalog, validation: Validation, loss: SftLoss = SftLoss(), **kwargs: Any
    ) -> None:
        if kwargs["args"].packing or kwargs["args"].padding_free:
            raise UsageError("packing and padding_free are set, and SFT reads items at their places: unset both")
        self.catalog = catalog
        self.validation = validation
        self.loss = loss
        # The trainer insists on an evaluation set; `evaluate` measures ranks instead and never reads it.
        super().__init__(*args, eval_dataset=kwargs["train_dataset"].select([0]), **kwargs)
        collate = self.data_collator
        self.data_collator = lambda rows: {**collate(rows), **self._items(rows)}

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # it has its token ids; TRL would drop what has no labels, and so early answers

    def _set_signature_columns_if_needed(self):
        self._signature_columns = list(STORED)

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(as_stored(train_dataset or self.train_dataset))

    def _items(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Where the tokens of each item are chosen, and among which."""
        items = [row["item"] for row in rows]
        if self.loss.item == "tokens":
            choices = ItemChoices.of_tokens([row["path"] for row in rows])
        else:
            excluded = [np.array(row["excluded"], np.int64) for row in rows]
            choices = ItemChoices.of(self.catalog, items, excluded)
        tensors = {name: tensor for name, tensor in vars(choices).items() if tensor is not None}
        return {**tensors, "item_start_B": torch.tensor([row["item_start"] for row in rows])}

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `anyo_rl.training.loop.validation.run_validation`."""
        return run_validation(self, self.validation, metric_key_prefix)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's mean over the tokens of reasonings, and the mean over items, weighted."""
        start_B = inputs.pop("item_start_B")
        choices = ItemChoices(**{name: inputs.pop(name) for name in CHOICES if name in inputs})
        with last_hidden(model) as states:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = found if return_outputs else (found,)
        # A token is read off at the one before it.
        hidden_B_S_D = states[0][torch.arange(len(start_B))[:, None], start_B[:, None] - 1 + choices.depth_B_S]
        item_loss = -choices.log_prob(head_logits(causal_lm(model), hidden_B_S_D)).mean()
        self._metrics["train"]["item_loss"].append(self.accelerator.gather(item_loss.detach()).mean().item())
        # TRL's mean is over all the tokens of a step, which may come in several batches.
        n_batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        loss = self.loss.reasoning_weight * loss + self.loss.item_weight * item_loss / n_batches
        return (loss, *outputs) if return_outputs else loss
