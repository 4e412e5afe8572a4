"""A process reward model (PRM): what a reasoning is worth so far, read off its text alone.

The values of `anyo_rl.values.step_values` need the target; a PRM is fitted to them and needs it no more. It has one
number for each token, and its scores in [0, 1] are those at the last token of the context (V_0) and of each step
(V_1 … V_T).

Labels are soft, the values themselves, where Math-Shepherd (arXiv 2312.08935) has a class for each step: a
recommendation has many near misses. V_T, after the last step, is the gain that the path had.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel

from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.paths import KEY
from anyo_rl.teacher.policy import inference
from anyo_rl.teacher.tokens import Tokens

PRM_FILE = "prm.json"
IGNORED = -100.0  # the label of a token that has none


def state_positions(n_context: int, completion_ids: Sequence[int], tokens: Tokens) -> list[int]:
    """Where the states before and after each step end: places of T + 1 tokens in context and completion together."""
    return [n_context - 1, *(n_context + end - 1 for end in tokens.step_ends(completion_ids))]


def state_values(before: np.ndarray, completion_ids: Sequence[int], gain: float, tokens: Tokens) -> list[float]:
    """V_0 … V_T of a path.

    Args:
        before: V_0 … V_{T−1}, at least V_0, as `anyo_rl.values.step_values` gives them.
        completion_ids: what was sampled, with T steps.
        gain: of the target after it; it counts where there is a marker, and is 0 elsewhere.
        tokens: the teacher's tokenizer and marker.
    """
    if not tokens.step_ends(completion_ids):
        return [float(before[0])]
    return [*map(float, before), float(gain) if tokens.marker_id in completion_ids else 0.0]


def labelled_example(
    prompt_ids: Sequence[int], completion_ids: Sequence[int], values: Sequence[float], tokens: Tokens
) -> dict[str, list]:
    """What a PRM is trained on: `input_ids`, and `labels`, which are the values where a state ends and else −100.

    So is the label of a state whose value is NaN: a judge gave it none.
    """
    labels = [IGNORED] * (len(prompt_ids) + len(completion_ids))
    for position, value in zip(state_positions(len(prompt_ids), completion_ids, tokens), values, strict=True):
        labels[position] = IGNORED if math.isnan(value) else value
    return {"input_ids": [*prompt_ids, *completion_ids], "labels": labels}


def label_paths(
    paths: pl.DataFrame,
    rows: Sequence[Row],
    tokens: Tokens,
    values: Callable[[Sequence[Row], list[list[int]]], list[np.ndarray]],
) -> pl.DataFrame:
    """Paths with their `step_values` V_0 … V_T, and with `prompt_ids`, the tokens of their prompts.

    Args:
        paths: a paths table with ranks by the `likelihood` ranker.
        rows: examples (`anyo_rl.reasoning.rows.make_rows`), those of the paths among them.
        tokens: the tokenizer and marker of the teacher that the paths were sampled from.
        values: gives V_0 … V_{T−1} of examples and completions: `anyo_rl.values.step_values`.

    Raises:
        ValueError: the paths cannot be told apart, were not ranked or not by `likelihood`, or their ids do not spell
            their texts by this tokenizer.
    """
    check_ranked(paths)
    known = {row.example_id: row for row in rows}
    of_paths = [known[example_id] for example_id in paths["example_id"]]
    completion_ids_B = paths["token_ids"].to_list()
    for ids, text in zip(completion_ids_B, paths["completion"], strict=True):
        if not text.startswith(tokens.decode(ids)):
            raise UsageError(
                f"a path is {text!r}, and its token ids spell {tokens.decode(ids)!r} by this teacher's tokenizer: "
                f"name the teacher that the paths were sampled from"
            )
    before_B = values(of_paths, completion_ids_B)
    gains = ndcg(paths["rank"].to_numpy())
    labels = [
        state_values(before, ids, gain, tokens)
        for before, ids, gain in zip(before_B, completion_ids_B, gains, strict=True)
    ]
    contexts = {example_id: tokens.context_ids(known[example_id].prompt) for example_id in set(paths["example_id"])}
    return paths.with_columns(
        pl.Series("step_values", labels, dtype=pl.List(pl.Float32)),
        pl.Series("prompt_ids", [contexts[row.example_id] for row in of_paths], dtype=pl.List(pl.Int64)),
    )


def check_ranked(paths: pl.DataFrame) -> None:
    """Checks that paths can be told apart and have ranks of answers that were read off.

    Raises:
        ValueError: they have not.
    """
    twice, unranked = int(paths.select(KEY).is_duplicated().sum()), int(paths["rank"].null_count())
    if twice or unranked:
        raise UsageError(
            f"of {len(paths)} paths {twice} share {', '.join(KEY)} with another and {unranked} have no rank, expected "
            f"one of each and a rank: leave out what came twice, and rank the rest"
        )
    others = sorted(set(paths["ranker"]) - {LikelihoodRanker.kind})
    if others:
        raise UsageError(
            f"the paths were ranked by {', '.join(map(str, others))}, expected {LikelihoodRanker.kind}: the values of "
            f"their steps are gains of answers that are read off"
        )


@dataclass(frozen=True)
class Prm:
    """A trained PRM.

    Attributes:
        model: a token classifier with one number for each token.
        tokens: its tokenizer and marker, which are those of the teacher it was made from.
        batch_size: sequences in one forward.
    """

    model: PreTrainedModel
    tokens: Tokens
    batch_size: int = 64

    @classmethod
    def load(cls, folder: Path | str, *, device: torch.device | str = "cpu", batch_size: int = 64) -> "Prm":
        """Loads what `recipes/train_prm.py` saved, from safetensors only.

        Raises:
            ValueError: there is no PRM in the folder.
        """
        folder = Path(folder)
        tokens = load_tokens(folder)
        try:
            model = AutoModelForTokenClassification.from_pretrained(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise _no_prm(folder, error) from error
        return cls(model.to(device).eval(), tokens, batch_size)

    def scores(
        self,
        prompt_ids_B: Sequence[Sequence[int]],
        completion_ids_B: Sequence[Sequence[int]],
        padding: Literal["left", "right"] = "right",
    ) -> list[np.ndarray]:
        """What each reasoning is worth before its first step and after each step.

        Args:
            prompt_ids_B: token ids of B prompts, none of them empty.
            completion_ids_B: what was written; only what comes before a marker counts.
            padding: the side on which sequences of a batch are filled up; scores do not depend on it.

        Returns:
            B arrays of T + 1 scores in [0, 1].
        """
        sequences = [[*prompt, *ids] for prompt, ids in zip(prompt_ids_B, completion_ids_B, strict=True)]
        order = sorted(range(len(sequences)), key=lambda b: len(sequences[b]))  # little padding
        found: dict[int, np.ndarray] = {}
        with inference(self.model):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                ids, mask = padded([sequences[b] for b in batch], self.tokens.tokenizer.pad_token_id, padding)
                ids, mask = ids.to(self.model.device), mask.to(self.model.device)
                logits = self.model(**inputs_of(ids, mask), use_cache=False).logits[..., 0]
                scores_B_W = logits.float().sigmoid().cpu().numpy()
                for b, scores_W in zip(batch, scores_B_W, strict=True):
                    at = state_positions(len(prompt_ids_B[b]), completion_ids_B[b], self.tokens)
                    shift = len(scores_W) - len(sequences[b]) if padding == "left" else 0
                    found[b] = scores_W[[position + shift for position in at]]
        return [found[b] for b in range(len(sequences))]

    def check_texts(self, completion_ids_B: Sequence[Sequence[int]], texts_B: Sequence[str]) -> None:
        """Checks that token ids mean the same to the PRM and to the teacher that is asked.

        Raises:
            ValueError: they are of another tokenizer.
        """
        check_same_texts(self.tokens, completion_ids_B, texts_B)


def load_tokens(folder: Path) -> Tokens:
    """Tokenizer and marker of a PRM that was saved.

    Raises:
        ValueError: there is no PRM in the folder.
    """
    try:
        notes = json.loads((folder / PRM_FILE).read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _no_prm(folder, error) from error
    return Tokens.of(tokenizer, notes["marker_token"], notes["chat_template_kwargs"])


def _no_prm(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"no PRM at {folder}: expected a folder that recipes/train_prm.py saved (prm/model of its run), with "
        f"{PRM_FILE}, config.json, model.safetensors and a tokenizer ({error})"
    )


def check_same_texts(tokens: Tokens, completion_ids_B: Sequence[Sequence[int]], texts_B: Sequence[str]) -> None:
    """Checks that token ids mean the same to a PRM with these tokens and to the teacher that is asked.

    Raises:
        ValueError: they are of another tokenizer.
    """
    for ids, text in zip(completion_ids_B, texts_B, strict=True):
        if tokens.decode(ids) != text:
            raise UsageError(
                f"the teacher wrote {text!r}, which the PRM reads as {tokens.decode(ids)!r}: train the PRM from a "
                f"teacher with the same tokenizer and marker"
            )


def padded(
    sequences_B: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, W) token ids, filled up on a side, and (B, W) their attention mask."""
    width = max(map(len, sequences_B))
    ids = torch.full((len(sequences_B), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences_B):
        place = slice(width - len(sequence), width) if side == "left" else slice(len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return ids, mask


def inputs_of(ids_B_W: torch.Tensor, mask_B_W: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the model is given: positions count from each sequence's first token, on whichever side it is padded."""
    return {
        "input_ids": ids_B_W,
        "attention_mask": mask_B_W,
        "position_ids": (mask_B_W.cumsum(1) - 1).clamp(min=0),
    }
