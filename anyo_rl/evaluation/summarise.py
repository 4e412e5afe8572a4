"""From kept answers to a `Summary`: of one run, or of several seeds of it.

Seeds are rows like others: a mean over all rows is the mean over seeds, and the bootstrap draws a user with all of its
examples and seeds, so that neither counts as more evidence than the users there are.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import polars as pl

from anyo_rl.data.sequences import held_out, train_sequences
from anyo_rl.evaluation.causal import Causal, read_causal
from anyo_rl.evaluation.convergence import not_converged, read_trainings
from anyo_rl.evaluation.evaluator import ANSWERS, AS_EVIDENCE, LIKED, P_YES, Evaluation, Frames, read_made_with
from anyo_rl.evaluation.paired import SEED, paired_difference, with_seeds
from anyo_rl.evaluation.searches import costs_of, equal_tokens, is_search
from anyo_rl.evaluation.stages import (
    BASELINES,
    CONTROLS,
    DIRECT,
    DIRECT_ENSEMBLE,
    DISTILLED,
    EVIDENCE,
    FILLER,
    FUSED_ROW,
    INCOMING,
    POST_HOC,
    PRETRAIN,
    RANK_TRAINED,
    SFT,
    STUDENT,
    TAUGHT,
    TEACHER,
    TEACHERS,
    is_student,
    of_written,
    stage_of,
)
from anyo_rl.evaluation.summary import AUC, SLICE_METRICS, Metrics, Modes, Slice, Summary, read_summary, write_summary
from anyo_rl.evaluation.taste import taste_kept
from anyo_rl.metrics.auc import auc, bootstrap_auc
from anyo_rl.metrics.intervals import Interval, bootstrap_interval
from anyo_rl.metrics.ranking import coverage, per_user_metrics
from anyo_rl.run.files import read_table
from anyo_rl.run.folder import METRICS
from anyo_rl.students.popularity import fit_popularity

SAME = ("dataset", "split", "mask_history", "ranker", "n_users", "n_examples", "n_items", "n_paths")  # else no mean
COVERAGE = "coverage@10"
BESIDE_SFT = (DIRECT.name, POST_HOC.name, FILLER.name)
BESIDE_TAUGHT = (TEACHER.name, TAUGHT.name, DIRECT.name, "item_knn", "sasrec")
BESIDE_RANK_TRAINED = (
    *(SFT.name, *(stage.name for stage in CONTROLS), DIRECT.name, DIRECT_ENSEMBLE.name),
    *(EVIDENCE.name, "item_knn", "sasrec"),
)


def summarise(
    evaluation: Evaluation, ranker: str, n_paths: int | None = None, added: Sequence[tuple[str, str]] = ()
) -> Summary:
    """All answers that a run kept of its test users.

    Args:
        evaluation: of the run.
        ranker: how the teachers' ranks were taken.
        n_paths: how many a mixture has; `None` where none is asked for.
        added: a stage and the one that it builds on, each; left out where one of the two was not evaluated.
    """
    args, test, seed = evaluation.task.args, evaluation.test, evaluation.seed
    frames = evaluation.kept(n_paths)
    added = [pair for pair in added if set(pair) <= set(frames)]
    why = not_converged(read_trainings(evaluation.run_dir / METRICS))
    stated = true = None
    if evaluation.task.world is not None:
        # Answers with evidence have no paths of their own: their reasonings are the teacher's.
        reasoned = [stage for stage in frames if evaluation.paths(stage, "greedy").is_file()]
        truths = {stage: _true_intents(evaluation, stage) for stage in reasoned if "greedy" in frames[stage]}
        stated = {stage: Interval(share) for stage, (share, _) in truths.items()}
        true = {stage: Interval(share) for stage, (_, share) in truths.items() if share is not None}
    return Summary(
        dataset=args.dataset,
        split=f"test ({args.split})",
        mask_history=args.mask_history,
        n_users=test["user_id"].n_unique(),
        n_examples=len(test),
        n_items=len(evaluation.item_ids),
        ranker=ranker,
        seed=seed,
        n_paths=n_paths,
        not_converged={DIRECT.name: why} if why and DIRECT.name in frames else {},
        stages=stage_values(frames, len(evaluation.item_ids), seed),
        differences=differences(without_searches(frames), seed, added),
        added=tuple(f"{a}-{b}" for a, b in added),
        slices=_slices(evaluation, without_searches(frames)),
        equal_tokens=equal_tokens(frames, seed),
        causal={stage: Causal.of(one, seed) for stage, one in read_causal(evaluation.run_dir, frames).items()},
        stated_intent=stated,
        true_intent=true,
    )


def write_seeds(folder: Path, evaluations: Mapping[int, Evaluation], ranker: str) -> Summary:
    """Writes the numbers of each seed beside its answers and their means in the run folder, and gives the means.

    Args:
        folder: the run folder.
        evaluations: seed → what was answered with it.
        ranker: kind of the ranker that gave the ranks.
    """
    for evaluation in evaluations.values():
        write_summary(evaluation.run_dir, summarise(evaluation, ranker))
    summary = summarise_seeds({seed: evaluation.run_dir for seed, evaluation in evaluations.items()})
    write_summary(folder, summary)
    return summary


def summarise_seeds(folders: Mapping[int, Path]) -> Summary:
    """Means over seeds of every stage, mode and metric, and of the paired differences.

    Args:
        folders: seed → its finished run folder.

    Returns:
        The summary, each value with that of every seed. A stage that a seed lacks is averaged over those that have
        it; its `n` says so.

    Raises:
        ValueError: no folder, or the seeds were not evaluated in the same way.
    """
    if not folders:
        raise ValueError("no seed has an evaluation to average: run at least one")
    parts = {seed: found for seed in sorted(folders) if (found := read_summary(folders[seed])) is not None}
    first = next(iter(parts.values()))
    for name in SAME:
        told = {repr(getattr(part, name)) for part in parts.values()}
        if len(told) > 1:
            raise ValueError(
                f"seeds differ in {name!r}: found {', '.join(sorted(told))}, expected one value; "
                "run the seeds that differ again, into a new --output_dir"
            )
    frames, added = seed_frames(folders), [pair for pair in map(first.compared, first.added) if pair]
    return replace(
        first,
        seed=None,
        seeds=tuple(parts),
        not_converged={stage: why for part in parts.values() for stage, why in part.not_converged.items()},
        stages=stage_values(frames, first.n_items or 1, seed=0),
        differences=differences(without_searches(frames), seed=0, added=added),
        slices={},
        equal_tokens=equal_tokens(frames, seed=0),
        causal=_causal_of_seeds(folders, frames),
        stated_intent=None,
        true_intent=_mean_shares(list(parts.values())),
    )


def _causal_of_seeds(folders: Mapping[int, Path], stages: Iterable[str]) -> dict[str, Causal]:
    """The causal reports over all seeds that have one."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for seed, folder in folders.items():
        for stage, frame in read_causal(folder, stages).items():
            parts.setdefault(stage, []).append(frame.with_columns(pl.lit(seed).alias(SEED)))
    return {stage: Causal.of(pl.concat(of_seeds), seed=0) for stage, of_seeds in parts.items()}


def without_searches(frames: Frames) -> Frames:
    """The answers of stages in their own modes."""
    kept = {stage: {mode: one for mode, one in modes.items() if not is_search(one)} for stage, modes in frames.items()}
    return {stage: modes for stage, modes in kept.items() if modes}


def _mean_shares(parts: Sequence[Summary]) -> Metrics | None:
    """The mean over seeds of each stage's share of true intents; a seed has no interval of it."""
    shares: dict[str, list[float]] = {}
    for part in parts:
        for stage, share in (part.true_intent or {}).items():
            shares.setdefault(stage, []).append(share.mean)
    return {s: Interval(math.fsum(v) / len(v), by_seed=tuple(v)) for s, v in shares.items()} or None


def seed_frames(folders: Mapping[int, Path]) -> Frames:
    """The answers that runs of several seeds kept, one below the other, with the column `seed`.

    Where seeds drew their data anew (`--split_seed`), a user's name stands for other users, who are told apart.

    Raises:
        ValueError: a folder has no answers, or they were kept without their users.
    """
    parts: dict[tuple[str, str], list[pl.DataFrame]] = {}
    data = set()
    for seed, folder in folders.items():
        files = sorted((folder / ANSWERS).glob("*.parquet"))
        for file in files:
            frame, (stage, mode) = read_table(file), file.stem.split(".")
            if "user_id" not in frame.columns:
                raise ValueError(f"{file} does not name its users: remove it, and run its seed again")
            record = read_made_with(file) or {}
            data.add((record.get("users"), record.get("split_seed")))
            parts.setdefault((stage, mode), []).append(frame.with_columns(pl.lit(seed).alias(SEED)))
        if not files:
            raise ValueError(f"found no answers in {folder / ANSWERS}, expected those of a finished run")
    frames: Frames = {}
    for (stage, mode), of_seeds in parts.items():
        frame = pl.concat(of_seeds, how="diagonal")
        if len(data) > 1:
            frame = frame.with_columns(pl.concat_str(pl.col(SEED), "user_id", separator=" ").alias("user_id"))
        frames.setdefault(stage, {})[mode] = frame
    return frames


def stage_values(frames: Frames, n_items: int, seed: int) -> dict[str, Modes]:
    """Every metric of every stage and mode; with a column `seed`, that of each seed too."""
    return {
        stage: {mode: _values(frame, n_items, seed) for mode, frame in modes.items()}
        for stage, modes in frames.items()
    }


def differences(frames: Frames, seed: int, added: Sequence[tuple[str, str]] = ()) -> dict[str, Modes]:
    """Paired differences over the same examples: SFT and each stage that learned from ranks − what they stand beside.

    And evidence alone − each baseline, each student − the plain one, evidence, each baseline and each other student,
    what a teacher wrote − its likelihood ranks and what reweighs its distances, a teacher with evidence − either alone
    (one that reasons also − those that answer at once, with evidence), teachers that are asked about candidates − the
    order in which these came in, small models that learned to reason − their teacher, each other and `direct`, and
    what `added` has.

    A greedy reasoning and a mixture are set against the same mode of the other stage, or against its only one.
    """
    found: dict[str, Modes] = {}
    pairs = [*product([SFT.name], BESIDE_SFT), *product(RANK_TRAINED, BESIDE_RANK_TRAINED)]
    pairs += product([TAUGHT.name, DISTILLED.name], BESIDE_TAUGHT)
    pairs += product([EVIDENCE.name], BASELINES)
    if INCOMING.name in frames:
        pairs += [(name, INCOMING.name) for name in frames if name in TEACHERS or of_written(name)]
    for name in frames:  # what is written beside what is read off, and beside what its distances are reweighed by
        if written := of_written(name):
            pairs += [(name, EVIDENCE.name if other == "fused" else other) for other in written if other is not None]
        elif name.endswith(FUSED_ROW):
            own = name.removesuffix(FUSED_ROW)
            at_once = [f"{stage.name}{FUSED_ROW}" for stage in (DIRECT, PRETRAIN)] if stage_of(own).reasons else []
            pairs += product([name], [EVIDENCE.name, own, *at_once])
    students = [name for name in frames if is_student(name)]
    pairs += product(students, [STUDENT.name, EVIDENCE.name, *BASELINES])
    pairs += [(b, a) for a, b in combinations(students, 2) if STUDENT.name not in (a, b)]
    for a, b in dict.fromkeys([*pairs, *added]):
        for mode, frame in frames.get(a, {}).items():
            other = frames.get(b, {}).get(mode)
            if other is None:
                other = frames.get(b, {}).get("plain")
            if other is not None and a != b:
                found.setdefault(f"{a}-{b}", {})[mode] = paired_difference(frame, other, seed)
    return found


def _values(frame: pl.DataFrame, n_items: int, seed: int) -> Metrics:
    values = {
        name: bootstrap_interval(values_R, frame["user_id"], seed=seed) for name, values_R in _each(frame).items()
    }
    values[COVERAGE] = Interval(_coverage(frame, n_items), n=len(frame))
    if P_YES in frame.columns:
        values[AUC] = _auc(frame, seed)
    if SEED in frame.columns:
        parts = frame.partition_by(SEED, maintain_order=True)
        by_seed = [{**_means(_each(part)), COVERAGE: _coverage(part, n_items)} for part in parts]
        if P_YES in frame.columns:
            by_seed = [{**each, AUC: _auc(part, seed).mean} for each, part in zip(by_seed, parts, strict=True)]
        values[COVERAGE] = Interval(float(np.mean([each[COVERAGE] for each in by_seed])), n=len(frame))
        values = {name: with_seeds(value, [each[name] for each in by_seed]) for name, value in values.items()}
    return values


def _auc(frame: pl.DataFrame, seed: int) -> Interval:
    """AUC over all items that users were asked about, with a bootstrap over users."""
    asked = frame.select("user_id", P_YES, LIKED).explode(P_YES, LIKED).drop_nulls()
    scores, liked, users = asked[P_YES].to_numpy(), asked[LIKED].to_numpy(), asked["user_id"].to_list()
    low, high = bootstrap_auc(scores, liked, users, seed=seed)
    known = not math.isnan(low)
    return Interval(auc(scores, liked), low if known else None, high if known else None, len(asked))


def _each(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Metrics of each row; with evidence also whether they are the evidence's own, and of searches what they cost."""
    same = {name: frame[name].cast(pl.Float64).to_numpy() for name in AS_EVIDENCE if name in frame.columns}
    return {**per_user_metrics(frame["rank"]), **same, **costs_of(frame)}


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in values.items()}


def _coverage(frame: pl.DataFrame, n_items: int) -> float:
    return coverage([row[:10] for row in frame["top_ids"].to_list()], n_items)


def _slices(evaluation: Evaluation, frames: Frames) -> dict[str, dict[str, dict[str, Slice]]]:
    """NDCG@10 and HR@10 by cold item and user, popularity of the target, length of the history, and shifting taste."""
    index, test = evaluation.index, evaluation.test
    sequences = train_sequences(evaluation.task, index)
    counts = fit_popularity(sequences, len(index)).counts
    target_counts = counts[[index[target] for target in test["target_id"].to_list()]]
    edges = np.quantile(target_counts, [1 / 3, 2 / 3])
    lengths = test["history"].list.len().to_numpy()
    middle = np.median(lengths)
    cold = test["cold_item"].to_numpy()
    masks = {
        "cold_item=true": cold,
        "cold_item=false": ~cold,
        "popularity=tail": target_counts <= edges[0],
        "popularity=middle": (target_counts > edges[0]) & (target_counts <= edges[1]),
        "popularity=head": target_counts > edges[1],
        "history=short": lengths <= middle,
        "history=long": lengths > middle,
    }
    cold_user = test["cold_user"].to_numpy()
    if cold_user.any() and not cold_user.all():  # split by users they all are
        masks |= {"cold_user=true": cold_user, "cold_user=false": ~cold_user}
    kept = taste_kept(sequences, len(index), held_out(evaluation.task, test, index).histories)
    if not np.isnan(kept).all():
        shifted = kept <= np.nanquantile(kept, 1 / 3)
        masks |= {"taste=shifted": shifted, "taste=kept": ~shifted & ~np.isnan(kept)}
    users = test["user_id"].to_numpy()

    def cut(frame: pl.DataFrame, mask: np.ndarray) -> Slice:
        values = per_user_metrics(frame["rank"])
        metrics = {
            name: bootstrap_interval(values[name][mask], users[mask], seed=evaluation.seed) for name in SLICE_METRICS
        }
        return Slice(int(mask.sum()), metrics)

    return {
        stage: {
            mode: {name: cut(frame, mask) for name, mask in masks.items() if mask.any()}
            for mode, frame in modes.items()
        }
        for stage, modes in frames.items()
    }


def _true_intents(evaluation: Evaluation, stage: str) -> tuple[float, float | None]:
    """Share of greedy reasonings that state an intent (toy world), and of these, those that state the true one."""
    world, task = evaluation.task.world, evaluation.task
    assert world is not None
    paths = read_table(evaluation.paths(stage, "greedy"), ["example_id", "user_id", "steps"])
    true = [
        world.is_true(steps, user, task.position(example))
        for example, user, steps in paths.iter_rows()
        if world.states_intent(steps)
    ]
    return len(true) / len(paths), float(np.mean(true)) if true else None
