"""Leaves out training examples on which sampled reasonings make no difference: too easy, or hopeless."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from tqdm import tqdm
from transformers import PreTrainedModel

from anyo_rl.catalog.opening import Teacher
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import write_whole
from anyo_rl.run.launch import whole_weights
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer

ROWS_AT_ONCE = 256


def keep_spread(
    rows: Sequence[Row],
    load: Callable[[], PreTrainedModel],
    teacher: Teacher,
    file: Path,
    sampling: Sampling,
    *,
    least: float,
) -> list[Row]:
    """The examples whose largest and smallest gain over sampled paths differ by `least` or more.

    The main process samples while the others wait, so it has to be done within `ddp_timeout`.

    Args:
        rows: training examples.
        load: gives the weights that GRPO starts from, which may be shared out in `teacher`; called by the main
            process, and only where it has to sample.
        teacher: its tokens and catalog.
        file: where the outcome is kept, so that a resumed run trains on the same examples; remade for other settings.
        sampling: of the paths.
        least: the least difference.

    Raises:
        ValueError: nothing is left.
    """
    state = PartialState()
    settings = {"least": least, "temperature": sampling.temperature}
    settings |= {"n_paths": sampling.n, "max_new_tokens": sampling.max_new_tokens, "seed": sampling.seed}
    how = How("mixture", sampling, top_k=1)
    if state.is_main_process and not (file.exists() and json.loads(file.read_text())["settings"] == settings):
        with whole_weights():  # for sampling too: `generate` would wait for the other processes under ZeRO-3
            model = load().to(state.device)
            ranker = LikelihoodRanker(teacher.catalog, model)
            sampler = TransformersSampler(model, teacher.tokens)
            ranks: list[int | None] = []
            for start in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc="gain spread"):
                answers = answer(rows[start : start + ROWS_AT_ONCE], ranker, sampler, teacher.tokens, how)
                ranks += [path.rank for path in answers.paths]
        gains = ndcg(np.array(ranks)).reshape(len(rows), sampling.n)
        spread = gains.max(1) - gains.min(1)
        kept = [row.example_id for row, s in zip(rows, spread, strict=True) if s >= least]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"settings": settings, "kept": kept}))
    state.wait_for_everyone()
    chosen = set(json.loads(file.read_text())["kept"])
    if not chosen:
        raise ValueError(
            f"no example has a gain spread of {least} or more over {sampling.n} paths; lower min_gain_spread"
        )
    return [row for row in rows if row.example_id in chosen]
