"""Leaves out training examples on which sampled reasonings make no difference: too easy, or hopeless."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from anyo_rl.catalog.opening import Teacher
from anyo_rl.evidence.fusion import Engine
from anyo_rl.metrics.gains import ndcg
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_json, write_whole
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampler, Sampling
from anyo_rl.sampling.ranked import ROWS_AT_ONCE, ranked_paths
from anyo_rl.stages.arguments import ReasonerArguments
from anyo_rl.stages.job import Job


def keep_spread(
    job: Job,
    rows: Sequence[Row],
    load: Callable[[], Engine],
    teacher: Teacher,
    args: ReasonerArguments,
    sampling: Sampling,
    file: Path,
) -> set[str]:
    """The ids of examples whose largest and smallest gain over sampled paths differ by `min_gain_spread` or more.

    All processes call this together, and each samples for its share of the examples.

    Args:
        job: of the run.
        rows: training examples.
        load: gives the ranker on the weights that GRPO starts from, whole, since they may be shared out in `teacher`;
            called only where there is something to sample.
        teacher: its tokens and catalog.
        args: the least spread, and how far ranks are told apart.
        sampling: of the paths.
        file: where the outcome is kept, so that a resumed run trains on the same examples; remade for other settings.

    Raises:
        ValueError: nothing is left.
    """
    state, least = PartialState(), args.min_gain_spread
    settings = {"least": least, "temperature": sampling.temperature}
    settings |= {"n_paths": sampling.n, "max_new_tokens": sampling.max_new_tokens, "seed": sampling.seed}
    settings |= {"rank_cap": args.rank_cap, "rank_node_budget": args.rank_node_budget}
    known = file.exists() and read_json(file)["settings"] == settings
    state.wait_for_everyone()  # so that all have looked before one writes
    if not known:
        own = rows[state.process_index :: state.num_processes]
        with whole_weights():  # for sampling too: `generate` would wait for the other processes under ZeRO-3
            ranker = load()
            sampler = job.sampler(ranker.model.to(state.device), teacher.tokens)
            spread_B = _spread(own, sampler, ranker, teacher, sampling)
        kept = [example_id for example_id, spread in spread_B if spread >= least]
        everywhere = gather_object(kept) if state.num_processes > 1 else kept
        if state.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps({"settings": settings, "kept": everywhere}))
    state.wait_for_everyone()
    chosen = set(read_json(file)["kept"])
    if not chosen:
        raise UsageError(
            f"no example has a gain spread of {least} or more over {sampling.n} paths; lower min_gain_spread"
        )
    return chosen


def _spread(
    rows: Sequence[Row], sampler: Sampler, ranker: Engine, teacher: Teacher, sampling: Sampling
) -> list[tuple[str, float]]:
    """Each example's id, and how far apart its gains are after sampled paths."""
    ids: list[str] = []
    ranks: list[int | None] = []
    with tqdm(total=len(rows), desc="gain spread", unit="user") as bar:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            batch = rows[start : start + ROWS_AT_ONCE]
            paths = ranked_paths(batch, sampler, teacher.tokens, teacher.catalog, sampling, ranker=ranker)
            ids += [path.example_id for path in paths[:: sampling.n]]
            ranks += [path.rank for path in paths]
            bar.update(len(batch))
    gains_B_G = ndcg(np.array(ranks)).reshape(len(rows), sampling.n)
    return list(zip(ids, gains_B_G.max(1) - gains_B_G.min(1), strict=True))
