"""Columns that the engine makes for rewards beside the rank, once per batch, and only where a reward asks for them.

- `direct_log_prob`: log p(target | no reasoning), the marker right after the prompt; one context per prompt.
- `swapped_gain`: the target's gain when the reasoning is another user's; one more ranking per completion.
- `carried_gain`: the target's gain when the history is another user's, and the reasoning stays; as much again.

A reward asks by a parameter without a default, or by an attribute `columns`. A group may lie on several processes, and
a process may hold a single group, so reasonings are swapped over all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from anyo_rl.data.completion import Prompt
from anyo_rl.evidence.fusion import Engine
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.rewards.check import wanted_columns

DIRECT, SWAPPED, CARRIED = "direct_log_prob", "swapped_gain", "carried_gain"


@dataclasses.dataclass(frozen=True)
class Written:
    """What another process has to know of a completion.

    Attributes:
        user_id: whose it is.
        ids: its token ids.
        marked: whether it has the marker.
        prompt: what it was written to.
    """

    user_id: Any
    ids: list[int]
    marked: bool
    prompt: Prompt = ""


def swap_partners(written_A: Sequence[Written], group_size: int) -> list[int | None]:
    """For each completion one of another user, with a marker: that of the same place in the next group, or the next.

    Args:
        written_A: completions of all processes, groups of `group_size` in a row.
        group_size: completions of each prompt.

    Returns:
        Positions; `None` where no other user has a completion with a marker.

    >>> written = [Written(user, [], marked) for user, marked in (("a", True), ("a", True), ("b", False), ("b", True))]
    >>> swap_partners(written, 2)
    [3, 3, 0, 1]
    """
    n = len(written_A)
    return [
        next(
            (
                j
                for step in range(n)
                if written_A[j := (i + group_size + step) % n].marked and written_A[j].user_id != own.user_id
            ),
            None,
        )
        for i, own in enumerate(written_A)
    ]


class Probes:
    """What rewards ask of the engine.

    Args:
        reward_funcs: the rewards, as they were loaded.
        written: whether the teacher writes its item: there is no answer to read off then.

    Raises:
        ValueError: a reward asks for a column, and items are written.
    """

    def __init__(self, reward_funcs: Sequence[Callable[..., Any]], written: bool = False) -> None:
        self.wanted = wanted_columns(reward_funcs) & {DIRECT, SWAPPED, CARRIED}
        if self.wanted and written:
            raise ValueError(
                f"a reward asks for {', '.join(sorted(self.wanted))}, and an item that is written has none: set "
                f"ranker to likelihood, or leave the reward out"
            )

    def partners(
        self, rows: Sequence[Row], completion_ids: list[list[int]], marker_id: int, group_size: int, accelerator: Any
    ) -> list[Written | None]:
        """For each completion one of another user (`swap_partners`); `None` where no reward exchanges anything.

        All processes call this, before anything can fail on one.
        """
        if not self.wanted & {SWAPPED, CARRIED}:
            return [None] * len(rows)
        mine = [
            Written(row.user_id, ids, marker_id in ids, row.prompt)
            for row, ids in zip(rows, completion_ids, strict=True)
        ]
        everyone = _gather(mine, accelerator)
        start = accelerator.process_index * len(mine)
        partners = swap_partners(everyone, group_size)[start : start + len(mine)]
        return [None if partner is None else everyone[partner] for partner in partners]

    def measure(
        self,
        rows: Sequence[Row],
        completion_ids: list[list[int]],
        partners_B: Sequence[Written | None],
        ranker: Engine,
        tokens: Tokens,
    ) -> dict[str, list[float | None]]:
        """Asks the engine; the weights are whole, so processes need not wait for one another.

        Args:
            rows: of the batch.
            completion_ids: what was written.
            partners_B: what `partners` gave.
            ranker: the engine, with the cap and budget of the ranks.
            tokens: the teacher's tokenizer and marker.

        Returns:
            The wanted columns by name.
        """
        columns: dict[str, list[float | None]] = {}
        if not self.wanted:
            return columns
        prompts = [tokens.context_ids(row.prompt) for row in rows]
        targets = [row.target_id for row in rows]
        if DIRECT in self.wanted:
            # The target's own path gives its probability; its rank would cost a search.
            path = LikelihoodRanker(ranker.catalog, ranker.model, cap=1, node_budget=1, tie_band=0.0)
            found = path.rank([tokens.marked_context(prompt, []) for prompt in prompts], targets, top_k=0)
            assert found.log_probs_B is not None
            columns[DIRECT] = found.log_probs_B.tolist()
        there = [
            (i, partner)
            for i, (ids, partner) in enumerate(zip(completion_ids, partners_B, strict=True))
            if partner is not None and tokens.marker_id in ids
        ]
        # In one order on all processes, and only what is wanted: prompts are tokenised for it.
        contexts: dict[str, Callable[[int, Written], list[int]]] = {
            SWAPPED: lambda i, partner: tokens.marked_context(prompts[i], partner.ids),
            CARRIED: lambda i, partner: tokens.marked_context(tokens.context_ids(partner.prompt), completion_ids[i]),
        }
        for name in [name for name in contexts if name in self.wanted]:
            found = ranker.rank(
                [contexts[name](i, partner) for i, partner in there],
                [targets[i] for i, _ in there],
                top_k=0,
                excluded_B=[rows[i].excluded for i, _ in there],
                example_ids_B=[rows[i].example_id for i, _ in there],
            )
            column: list[float | None] = [None] * len(rows)
            for (i, _), gain in zip(there, ndcg(found.ranks_B).tolist(), strict=True):
                column[i] = gain
            columns[name] = column
        return columns


def _gather(mine: list[Written], accelerator: Accelerator) -> list[Written]:
    return gather_object(mine) if accelerator.num_processes > 1 else mine
