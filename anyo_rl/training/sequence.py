"""The sequence stage: each user's sequence is read once, and the next item is learned at every event of it.

What a teacher is asked later is a prompt and an answer, `History: … Next: ->` and the item, and that is what it learns
here, for all histories of a user together. The lines of the history stand once, as the *trunk*. Behind each of them
hangs a *branch*: the rest of the prompt, the marker, and the item's tokens as far as they are a choice. A token of the
trunk attends to those before it; a token of a branch to the trunk up to its line and to its own branch, at the
positions that it would have in a prompt of its own (a 4D mask and explicit positions, as the ranking engine reads the
nodes of its tree). So each event's loss is to the last digit the one that `direct` has on a prompt of that history,
for the price of a few tokens an event in place of a whole prompt, and a teacher needs no second training to answer in
that form.

Where an item is one choice (a token of its own), it may also be read off at the end of the line before it, where it
has no branch: a third of the tokens, and a ninth of attention's work. `asked_share` of the events are then asked in
the prompt's form, so that what is learned at the line ends is said at the marker too. Each event is learned in one of
the two forms.

What is minimised is the mean of −log p(item) under the policy that the engine ranks by: with one token per item a
softmax over the items alone. With masking, the items that a user chose before take no part in it, and an event that
repeats one of them is no target, as in all other training here.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any, TypedDict

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from trl import SFTTrainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.task import Task
from anyo_rl.reasoning.rows import make_prompt
from anyo_rl.run.settings import UsageError
from anyo_rl.students.training import windows
from anyo_rl.teacher.policy import (
    TREE_ATTENTION,
    attends_over_trees,
    attention_bias,
    causal_lm,
    head_logits,
    last_hidden,
)
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.item_loss import ItemChoices, branchings
from anyo_rl.training.lazy import STORED, as_stored, lazy_dataset
from anyo_rl.training.loop.validation import Validation, run_validation
from anyo_rl.training.sft import CHOICES

CHECKED = 100  # windows whose prompts are tokenised whole, to see that their lines add up
PADDING = -1


@dataclass(frozen=True)
class Reading:
    """How sequences are read.

    Attributes:
        max_events: longest history of a window; windows of a long sequence overlap by one event, so that each event
            but a user's first is predicted once (`anyo_rl.students.training.windows`).
        asked_share: share of the events that are asked as a prompt asks, in [0, 1]; the others are read off at line
            ends, which takes items of one choice.
        cuttings: how often a sequence is in the dataset: cut in another way each time where it is long, and asked at
            other events.

    Raises:
        UsageError: the share is out of its range.
    """

    max_events: int
    asked_share: float = 1.0
    cuttings: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.asked_share <= 1:
            raise UsageError(f"asked_share is {self.asked_share}: expected 0 to 1")


class SequenceRow(TypedDict):
    """A window of a user's sequence as token ids; see the module's docstring.

    Of each token: `branch` is 0 in the trunk and counts from 1 in branches; `position_ids` is its place in the prompt,
    `begin` the place at which its branch begins (0 in the trunk). Of each event that is predicted: `place` is the
    column of the marker, or, with one choice an item, the one at which that choice is read; `items` the item by index;
    `n_past` how many of `past`, the user's items from the first on, came before it and are left out of rankings.
    """

    input_ids: list[int]
    branch: list[int]
    position_ids: list[int]
    begin: list[int]
    place: list[int]
    items: list[int]
    n_past: list[int]
    past: list[int]


def sequence_dataset(
    task: Task,
    sequences: Sequence[Sequence[int]],
    catalog: Catalog,
    tokens: Tokens,
    reading: Reading,
    seed: int = 0,
) -> Dataset:
    """Users' sequences as windows of token ids, each made when it is drawn.

    Args:
        task: says how prompts look, and whether rankings leave out what a user chose before.
        sequences: the train events of each user by item index (`anyo_rl.data.sequences.train_sequences`).
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        reading: how they are read.
        seed: of the cuts, and of which events are asked.

    Raises:
        ValueError: no event can be predicted, the tokenizer merges the lines of a prompt, or items are several choices
            and not all events are asked.
    """
    if reading.asked_share < 1 and one_choice(catalog) is None:
        raise UsageError(
            f"asked_share is {reading.asked_share}, and items are several tokens, which no line end can choose at "
            f"once: set item_tokens to item, or asked_share to 1"
        )
    rows = _Sequences(task, sequences, catalog, tokens, reading, seed)
    generator = torch.Generator().manual_seed(seed)
    plan, length_R = array("i"), array("i")
    for cutting in range(reading.cuttings):
        for user, first, end in windows(sequences, reading.max_events, generator):
            row = rows.of(user, first, end - 1, cutting)
            if row["items"]:
                plan.extend((user, first, end - 1, cutting))
                length_R.append(len(row["input_ids"]))
    if not plan:
        raise UsageError(
            f"none of the {len(sequences)} training sequences has an event to predict: expected users with two events "
            f"or more"
        )
    rows.plan_R_4 = np.asarray(plan).reshape(-1, 4)
    rows.check()
    return lazy_dataset(rows, np.asarray(length_R))


class _Sequences:
    """Windows of sequences, row by row as token ids; `plan_R_4` has user, first and last event, and cutting."""

    def __init__(
        self,
        task: Task,
        sequences: Sequence[Sequence[int]],
        catalog: Catalog,
        tokens: Tokens,
        reading: Reading,
        seed: int,
    ) -> None:
        self.task, self.sequences, self.catalog, self.tokens = task, sequences, catalog, tokens
        self.asked_share, self.seed = reading.asked_share, seed
        self.depth = one_choice(catalog) or 0
        self.plan_R_4 = np.zeros((0, 4), np.int32)
        self.head, self.foot = self._ends()
        self.answer = tokens.reasoning_ids([], [*self.head, *self.foot])
        self.line = cache(self._line)
        self.choices = cache(partial(tokens_before, catalog))

    def __len__(self) -> int:
        return len(self.plan_R_4)

    def __getitem__(self, row: int) -> SequenceRow:
        return self.of(*map(int, self.plan_R_4[row]))

    def of(self, user: int, first: int, last: int, cutting: int) -> SequenceRow:
        """The events `first` to `last` of a user, all but the first of which are predicted.

        Each cutting asks other events, also of sequences that are too short to be cut.
        """
        sequence, masked = self.sequences[user], self.task.args.mask_history
        past = list(sequence[:last])
        trunk, ends = list(self.head), []
        for item in sequence[first:last]:
            trunk += self.line(item)
            ends.append(len(trunk))
        row = SequenceRow(
            input_ids=trunk,
            branch=[0] * len(trunk),
            position_ids=list(range(len(trunk))),
            begin=[0] * len(trunk),
            place=[],
            items=[],
            n_past=[],
            past=past if masked else [],
        )
        earlier = set(sequence[: first + 1])
        draws = np.random.default_rng((self.seed, user, first, cutting)).random(len(ends))
        for number, begin in enumerate(ends, 1):
            item = sequence[first + number]
            if not (masked and item in earlier):
                place = begin - 1
                if draws[number - 1] < self.asked_share:
                    tail = [*self.foot, *self.answer, *self.choices(item)]
                    place = len(row["input_ids"]) + len(self.foot) + len(self.answer) - 1 + self.depth
                    row["input_ids"] += tail
                    row["branch"] += [number] * len(tail)
                    row["position_ids"] += range(begin, begin + len(tail))
                    row["begin"] += [begin] * len(tail)
                row["place"].append(place)
                row["items"].append(item)
                row["n_past"].append(first + number if masked else 0)
            earlier.add(item)
        return row

    def check(self) -> None:
        """Sees to it that lines tokenised apart are the prompt that a teacher is asked.

        Raises:
            ValueError: they are not.
        """
        for user, first, *_ in self.plan_R_4[:CHECKED]:
            pair = self.sequences[user][first : first + 2]
            lines = [[*self.head, *chain(*map(self.line, shown)), *self.foot] for shown in (pair, pair[1:])]
            if self._prompt(pair) not in lines:  # a budget too small for both shows the newer one alone
                raise self._merged(pair)

    def _prompt(self, items: Sequence[int]) -> list[int]:
        history = [self.catalog.item_ids[item] for item in items]
        return self.tokens.context_ids(make_prompt(self.task, history, self.catalog, self.tokens))

    def _ends(self) -> tuple[list[int], list[int]]:
        """What stands before and after the lines of a history in a prompt."""
        empty = self._prompt([])
        sample = [self._prompt([item]) for item in range(min(CHECKED, len(self.catalog)))]
        for n in range(len(empty), -1, -1):  # a line break that could be either's ends the line
            head, foot = empty[:n], empty[n:]
            if all(_between(ids, head, foot) is not None for ids in sample):
                return head, foot
        raise self._merged([0])

    def _line(self, item: int) -> list[int]:
        line = _between(self._prompt([item]), self.head, self.foot)
        if line is None:
            raise self._merged([item])
        return line

    def _merged(self, items: Sequence[int]) -> UsageError:
        titles = [self.catalog.titles[item] for item in items]
        return UsageError(
            f"the tokens of a prompt with {titles} are not those of its lines, one after the other: the tokenizer "
            f"merges text over line breaks; take a teacher whose tokenizer does not"
        )


def tokens_before(catalog: Catalog, item: int) -> list[int]:
    """The tokens of an item before its last choice: what has to be read for its probability."""
    steps = branchings(catalog.tree, item)
    return list(catalog.paths[item][: steps[-1].depth]) if steps else []


def _between(ids: list[int], head: list[int], foot: list[int]) -> list[int] | None:
    """What stands between two ends; `None` where they are not these."""
    end = len(ids) - len(foot)
    return ids[len(head) : end] if end >= len(head) and ids[: len(head)] == head and ids[end:] == foot else None


def trunk_mask(branch_B_T: torch.Tensor, position_B_T: torch.Tensor, begin_B_T: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T) bool: which columns a token attends to; see `SequenceRow`.

    Args:
        branch_B_T: 0 in the trunk, the branch's number in branches, -1 in padding, which attends to padding.
        position_B_T: place in the prompt.
        begin_B_T: place at which the token's branch begins.
    """
    n_time = branch_B_T.shape[1]
    before_T_T = torch.ones(n_time, n_time, dtype=torch.bool, device=branch_B_T.device).tril()
    same_B_T_T = (branch_B_T[:, :, None] == branch_B_T[:, None]) & before_T_T
    trunk_B_T_T = (branch_B_T == 0)[:, None] & (position_B_T[:, None] < begin_B_T[:, :, None])
    return (same_B_T_T | trunk_B_T_T)[:, None]


def one_choice(catalog: Catalog) -> int | None:
    """How many tokens come before the only choice of all items' paths; `None` where paths have several choices."""
    steps = branchings(catalog.tree, 0)
    return steps[0].depth if len(steps) == 1 and len(steps[0].children) == len(catalog) else None


class Answers:
    """Reads off the log-probabilities of items under the constrained policy, at many places of a batch.

    Where the items' paths are a choice at one node alone, as with one token per item, that choice is a softmax over
    the catalog's own columns of the head; other trees take the choices of each path (`ItemChoices`).

    Args:
        catalog: the catalog.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        depth = one_choice(catalog)
        self.token_N = None if depth is None else torch.tensor([path[depth] for path in catalog.paths])

    def collate(self, rows: Sequence[SequenceRow]) -> dict[str, torch.Tensor]:
        """What `log_prob` takes, of the P predictions of a batch."""
        found = {
            "row_P": torch.tensor([b for b, row in enumerate(rows) for _ in row["place"]]),
            "place_P": torch.tensor([place for row in rows for place in row["place"]]),
        }
        items = [item for row in rows for item in row["items"]]
        pasts = [np.unique(np.array(row["past"][:n], np.int64)) for row in rows for n in row["n_past"]]
        if self.token_N is None:
            choices = ItemChoices.of(self.catalog, items, pasts)
            return found | {name: getattr(choices, name) for name in CHOICES}
        out = np.concatenate([np.zeros(0, np.int64), *pasts])
        of = np.repeat(np.arange(len(pasts)), [len(past) for past in pasts])
        return found | {"item_P": torch.tensor(items), "excluded_2_E": torch.from_numpy(np.stack([of, out]))}

    def log_prob(
        self, model: torch.nn.Module, hidden_B_T_D: torch.Tensor, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """(P,) log-probabilities.

        Args:
            model: the teacher.
            hidden_B_T_D: its last hidden states.
            inputs: of the batch, with what `collate` gave.
        """
        policy, row_P, place_P = causal_lm(model), inputs["row_P"], inputs["place_P"]
        if self.token_N is None:
            choices = ItemChoices(*(inputs[name] for name in CHOICES))
            hidden_P_S_D = hidden_B_T_D[row_P[:, None], place_P[:, None] + choices.depth_B_S]
            return choices.log_prob(head_logits(policy, hidden_P_S_D))
        logits_P_V = head_logits(policy, hidden_B_T_D[row_P, place_P])
        logits_P_N = logits_P_V[:, self.token_N.to(logits_P_V.device)]
        out = tuple(inputs["excluded_2_E"])
        logits_P_N = logits_P_N.index_put(out, logits_P_N.new_tensor(-torch.inf))
        return -cross_entropy(logits_P_N, inputs["item_P"], reduction="none")


class SequenceTrainer(SFTTrainer):
    """TRL's SFT trainer with the loss of the sequence stage, and validation by rank in place of an evaluation loss.

    The loss of a batch is the mean over its events; batches and processes count alike, however many they have.

    Args:
        catalog: the catalog.
        validation: what is measured at each evaluation.
        *args, **kwargs: as TRL's; the dataset is one of `sequence_dataset`.

    Raises:
        ValueError: packing or padding-free batches, or a model whose attention takes no mask of ours.
    """

    def __init__(self, *args: Any, catalog: Catalog, validation: Validation, **kwargs: Any) -> None:
        if kwargs["args"].packing or kwargs["args"].padding_free:
            raise UsageError("packing and padding_free are set, and events are read at their places: unset both")
        policy = causal_lm(kwargs["model"])
        kind = policy.config.get_text_config()._attn_implementation
        if not attends_over_trees(policy) or kind not in TREE_ATTENTION:
            raise UsageError(
                f"the attention of {type(policy).__name__} ({kind}) takes no mask of branches: set "
                f"attn_implementation to {' or '.join(TREE_ATTENTION)}, and take a teacher of full attention alone"
            )
        self.answers = Answers(catalog)
        self.validation = validation
        # The trainer insists on an evaluation set; `evaluate` measures ranks instead and never reads it.
        one = kwargs["train_dataset"].select([0])
        super().__init__(*args, eval_dataset=one, data_collator=self._collate, **kwargs)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # it has its token ids

    def _set_signature_columns_if_needed(self):
        self._signature_columns = list(STORED)

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(as_stored(train_dataset or self.train_dataset))

    def _collate(self, rows: Sequence[SequenceRow]) -> dict[str, torch.Tensor]:
        """Padded on the right, so that places stay."""

        def padded(name: str, value: int) -> torch.Tensor:
            columns = [torch.tensor(row[name]) for row in rows]  # type: ignore[literal-required]
            return pad_sequence(columns, batch_first=True, padding_value=value)

        return {
            "input_ids": padded("input_ids", self._tokenizer.pad_token_id),
            **{name: padded(name, value) for name, value in (("position_ids", 0), ("branch", PADDING), ("begin", 0))},
            **self.answers.collate(rows),
        }

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `anyo_rl.training.loop.validation.run_validation`."""
        return run_validation(self, self.validation, metric_key_prefix)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean of −log p(item) over the events of the batch."""
        branch, position = inputs["branch"], inputs["position_ids"]
        allowed = trunk_mask(branch, position, inputs["begin"])
        with last_hidden(model) as states:
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=attention_bias(allowed, causal_lm(model).dtype),
                position_ids=position,
                use_cache=False,
                logits_to_keep=1,
            )
        loss = -self.answers.log_prob(model, states[0], inputs).mean()
        counted = self.accelerator.gather((branch != PADDING).sum())
        self._total_train_tokens += counted.sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return (loss, outputs) if return_outputs else loss
