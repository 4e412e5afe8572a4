"""The supervised start: token ids from `anyo_rl.teacher.tokens`, TRL's `SFTTrainer`, validation by rank."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from trl import SFTTrainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.reasoning.rows import Row
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.validation import Validation, run_validation

IGNORED = -100


def sft_dataset(
    rows: Sequence[Row],
    catalog: Catalog,
    tokens: Tokens,
    rationales: Mapping[str, Sequence[Sequence[str]]] | None,
    *,
    early_share: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Examples as token ids with labels on the completion: reasoning, marker and item path.

    Args:
        rows: training examples (`anyo_rl.reasoning.rows.make_rows`).
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        rationales: example id to its reasonings, each of steps; examples without are left out. `None` for the
            `direct` teacher, which learns to answer at once from every example.
        early_share: share of the reasonings, in [0, 1], of which there is a second copy that is cut after a number of
            steps, each number alike from none to all but the last. It has labels on the item alone: the teacher
            learns to answer early where it is asked to, and not to end its reasoning early.
        seed: of these draws.

    Returns:
        A dataset with `input_ids` and `labels`, as TRL's SFT trainer takes it.

    Raises:
        ValueError: no example has a rationale, or the share is out of its range.
    """
    if not 0 <= early_share <= 1:
        raise ValueError(f"early_answer_share is {early_share}: expected 0 to 1")
    chosen = [row for row in rows if rationales is None or row.example_id in rationales]
    if not chosen:
        raise ValueError(
            f"none of the {len(rows)} training examples has a rationale; raise rationale_share, or train a "
            f"direct teacher"
        )
    rng = np.random.default_rng(seed)
    encoded = []
    for row in chosen:
        context = tokens.context_ids(row.prompt)
        path = catalog.paths[catalog.index[row.target_id]]
        for reasoning in [()] if rationales is None else rationales[row.example_id]:
            completion = [*tokens.reasoning_ids(map(tokens.safe_text, reasoning)), *path]
            encoded.append({"input_ids": context + completion, "labels": [IGNORED] * len(context) + completion})
            if reasoning and rng.random() < early_share:
                cut = reasoning[: int(rng.integers(len(reasoning)))]
                asked = [*context, *tokens.reasoning_ids(map(tokens.safe_text, cut))]
                encoded.append({"input_ids": [*asked, *path], "labels": [*[IGNORED] * len(asked), *path]})
    return Dataset.from_list(encoded)


class TeacherSFTTrainer(SFTTrainer):
    """TRL's SFT trainer with validation by rank in place of an evaluation loss.

    Args:
        validation: what is measured at each evaluation.
        *args, **kwargs: as TRL's.
    """

    def __init__(self, *args: Any, validation: Validation, **kwargs: Any) -> None:
        self.validation = validation
        # The trainer insists on an evaluation set; `evaluate` measures ranks instead and never reads it.
        super().__init__(*args, eval_dataset=kwargs["train_dataset"].select([0]), **kwargs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `anyo_rl.training.loop.validation.run_validation`."""
        return run_validation(self, self.validation, metric_key_prefix)
