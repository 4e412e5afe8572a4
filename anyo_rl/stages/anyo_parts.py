"""The configs of all parts of a whole run, read before anything is made, and joined to one another by flags."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import DIRECT, EVIDENCE, GRPO, PRETRAIN, SFT, STAR, STUDENT, stage_of
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.anyo import BASELINES, CACHE, DISTILLED, AnyoArguments, Parts, Step
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments
from anyo_rl.stages.baselines import BaselineArguments
from anyo_rl.stages.cache import EVIDENCE as OF_EVIDENCE
from anyo_rl.stages.cache import TEACHER, CacheArguments
from anyo_rl.stages.evidence import EvidenceArguments
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.pretrain import SequenceArguments
from anyo_rl.stages.reinforce import Reward, checked_method, checked_rewards
from anyo_rl.stages.student_arguments import DistillArguments, StudentArguments
from anyo_rl.stages.warm_start import check_written, parse_part

TEACHERS = (DataArguments, ModelConfig, TeacherArguments)


def read_parts(
    args: AnyoArguments,
    config: Path | None,
    teacher_args: TeacherArguments,
    model_args: ModelConfig,
    load_rewards: Callable[..., list[Reward]],
) -> Parts:
    """Reads the configs of all parts, and checks what can be checked before anything is made.

    Args:
        args: names them.
        config: the run's own, beside which they are looked for.
        teacher_args: the run's; finished evidence or baselines that they name take the place of a part.
        model_args: the run's.
        load_rewards: makes rewards of their names and parameters (`reward.load.load_rewards`).

    Raises:
        SystemExit: see `parse_part`.
        ValueError: settings cannot be used, or do not go together.
    """
    seeds, part = ["--seeds", str(args.seed)], partial(_part, args, config)
    baselines = evidence = cache = student = distill = None
    if args.baselines_config and not teacher_args.baselines_from:
        (baselines,) = part(args.baselines_config, [BaselineArguments], BASELINES, seeds)
    if args.evidence_config and not teacher_args.evidence:
        flags = [*seeds, "--training_scores", "true"]  # for the cache, and for training with it
        (evidence,) = part(args.evidence_config, [EvidenceArguments], EVIDENCE.name, flags)
    has_evidence = bool(evidence or teacher_args.evidence)
    if args.train_fused and not has_evidence:
        raise UsageError("train_fused is true and there is no evidence: name evidence_config")
    steps = _steps(args, config, teacher_args, model_args, load_rewards)
    if args.cache_config:
        flags = ["--seed", str(args.seed), "--run_dir", args.output_dir]
        for stage in list(steps)[-1:]:
            flags += ["--stage", stage, *([] if stage_of(stage).reasons else ["--mode", "plain"])]
        cache, *_ = part(args.cache_config, [CacheArguments, ModelConfig, TeacherArguments], CACHE, flags)
        if cache.source == TEACHER and not steps:
            raise UsageError(
                "the cache is of a teacher, and the run trains none: name a config of one of its stages, or set "
                "source to evidence or a baseline in the cache's config"
            )
        if cache.source == OF_EVIDENCE and not has_evidence:
            raise UsageError("the cache is of evidence, and there is none: name evidence_config")
    if args.student_config:
        flags = [*seeds, "--name", STUDENT.name]
        (student,) = part(args.student_config, [StudentArguments], STUDENT.name, flags)
    if args.distill_config:
        if cache is None:
            raise UsageError("distill_config is there and no cache_config: a student learns from a cache")
        flags = [*seeds, "--teacher_cache", str(Path(args.output_dir) / CACHE)]
        defaults = {"name": f"{STUDENT.name}_distilled"}
        distill = part(args.distill_config, [StudentArguments, DistillArguments], DISTILLED, flags, defaults)
        if distill[0].name == STUDENT.name:
            raise UsageError("the distilled student's name is student, as the plain one's: set name to student_…")
    return Parts(baselines, evidence, steps, cache, student, distill)


def _part(
    args: AnyoArguments,
    config: Path | None,
    named: str,
    kinds: Sequence[type],
    folder: str,
    flags: Sequence[str],
    defaults: dict[str, str] | None = None,
) -> tuple[Any, ...]:
    """A part with a folder of its own in the run's."""
    flags = ["--output_dir", str(Path(args.output_dir) / folder), *flags]
    return parse_part(named, config, [*kinds, DataArguments], flags, defaults)[:-1]


def _steps(
    args: AnyoArguments,
    config: Path | None,
    teacher_args: TeacherArguments,
    model_args: ModelConfig,
    load_rewards: Callable[..., list[Reward]],
) -> dict[str, Step]:
    """The stages of the teacher."""
    on = ["--seed", str(args.seed), "--use_cpu", str(not torch.cuda.is_available())]
    on += ["--output_dir", args.output_dir]
    found = {}
    if args.pretrain_config:
        *_, teacher, own, trl = parse_part(args.pretrain_config, config, (*TEACHERS, SequenceArguments, SFTConfig), on)
        found[PRETRAIN.name] = Step(trl, teacher.early_stopping_patience, own)
    if args.sft_config:
        *_, teacher, trl = parse_part(args.sft_config, config, (*TEACHERS, SFTConfig), on)
        found[SFT.name if args.reasoning else DIRECT.name] = Step(trl, teacher.early_stopping_patience)
    if args.star_config and args.reasoning:
        *_, teacher, own, trl = parse_part(args.star_config, config, (*TEACHERS, StarArguments, SFTConfig), on)
        found[STAR.name] = Step(trl, teacher.early_stopping_patience, own)
    if args.grpo_config and args.reasoning:
        kinds = (*TEACHERS, GrpoArguments, GRPOConfig)
        *_, teacher, own, trl = parse_part(args.grpo_config, config, kinds, on, {"num_generations_eval": 1})
        check_written(own, teacher_args)
        checked = (checked_rewards(load_rewards, own, trl), checked_method(own, trl, model_args))
        found[GRPO.name] = Step(trl, teacher.early_stopping_patience, own, checked)
    return found
