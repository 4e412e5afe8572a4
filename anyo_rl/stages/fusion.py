"""Teachers and evidence together: as what a stage is trained on, and as rows of a run's table.

α is chosen on validation: for training when the stage starts, among those above 0 (at 0 a reasoning would be paid for
nothing); for the table anew, and opened on test once.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.data.task import Task
from anyo_rl.evidence.candidates import places
from anyo_rl.evidence.fusion import ALPHAS, AlphaChoice, FusedRanker, Fusion, choose_alpha
from anyo_rl.evidence.opened import CARD, Evidence
from anyo_rl.ranking.embedding.ranker import GammaChoice
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.orders import OrderRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_json, readable, write_whole
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.kept import KeptSampler
from anyo_rl.search.answers import Answers, How, answer_together, reasoned
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.fusion_arguments import FusionArguments
from anyo_rl.stages.job import Job

logger = logging.getLogger(__name__)


def open_evidence(job: Job) -> Evidence | None:
    """The evidence that a run names, of its own seed where there is that; `None` where it names none.

    Raises:
        UsageError: it is not finished, or of other data.
    """
    if not job.teacher_args.evidence:
        return None
    return Evidence.open(Path(job.teacher_args.evidence), job.task, job.seed, or_first=True)


def check_evidence(args: FusionArguments, teacher_args: TeacherArguments, task: Task, seed: int) -> None:
    """Refuses settings of evidence that cannot be trained with, before anything is trained.

    Raises:
        UsageError: settings do not go together, or the evidence is not finished, of other data, or without scores of
            training examples.
    """
    if not teacher_args.evidence:  # as `open_evidence` reads it
        told = {"fusion_alpha": args.fusion_alpha, "headroom": args.headroom}
        told |= {"min_beyond_evidence": getattr(args, "min_beyond_evidence", None)}
        if alone := [name for name, value in told.items() if value is not None]:
            raise UsageError(f"{', '.join(alone)} without evidence: name the folder of recipes/rank_evidence.py")
        return
    ranker: Any = getattr(args, "ranker", LikelihoodRanker.kind)
    reweighed = (ranker, teacher_args.reweigh_by) == ("embedding", "evidence")
    if ranker not in (LikelihoodRanker.kind, OrderRanker.kind) and not reweighed:
        raise UsageError(
            f"ranker is {ranker} and evidence is given: in training it is fused with answers that are read off. Set "
            "ranker to likelihood; or reweigh distances by it (ranker embedding, reweigh_by evidence); or leave "
            "evidence out and evaluate with it afterwards (recipes/evaluate.py)"
        )
    if reweighed and args.fusion_alpha is not None:
        raise UsageError("fusion_alpha is set, and ranker is embedding: evidence reweighs distances by a gamma there")
    if args.headroom is not None and (len(args.headroom) != 2 or args.headroom[0] > args.headroom[1]):
        raise UsageError(f"headroom is {args.headroom}: expected two ranks, the lower one first, such as 2 50")
    Evidence.open(Path(teacher_args.evidence), task, seed, or_first=True).check_training()


def training_fusion(job: Job, stage: str, start: Path | str, args: FusionArguments) -> Fusion | None:
    """What a stage is trained together with; `None` where no evidence is named, or where items are written.

    All processes call this together.

    Args:
        job: of the run.
        stage: its name; α is chosen once and kept in its folder.
        start: the teacher that it starts from, which α is chosen with.
        args: α, where it is given.
    """
    evidence = open_evidence(job)
    if evidence is None or job.asking.questions is not None:  # which evidence names the candidates of
        return None
    if getattr(args, "ranker", LikelihoodRanker.kind) != LikelihoodRanker.kind:
        return None
    if args.fusion_alpha is not None:
        return Fusion(evidence, args.fusion_alpha)
    file, state = job.folder / stage / "fusion.json", PartialState()
    known = file.exists()
    state.wait_for_everyone()  # so that all have looked before one writes
    if not known:
        with whole_weights(), job.opened(start) as teacher:
            how = job.how(job.teacher_args.eval_mode, seed=0)
            choice = alpha_of(job, teacher, evidence, how, [alpha for alpha in ALPHAS if alpha > 0])
        keep_choice(file, choice)
    state.wait_for_everyone()
    with readable(file):
        alpha = float(read_json(file)["alpha"])
    logger.info("%s: trained on ranks by teacher and evidence, alpha %g (%s)", stage, alpha, file)
    return Fusion(evidence, alpha)


def with_headroom(
    task: Task, places: np.ndarray, evidence: Evidence | None, headroom: Sequence[int] | None
) -> np.ndarray:
    """The training examples whose target the evidence ranks between two ranks, both included; all without bounds.

    Args:
        task: the data.
        places: row numbers in its examples.
        evidence: ranks them.
        headroom: the two ranks.

    Raises:
        UsageError: none is left.
    """
    if headroom is None or evidence is None:
        return places
    low, high = headroom
    ranks_R = evidence.target_ranks(task.examples[EXAMPLE_ID].gather(places).to_list())
    kept: np.ndarray = places[(ranks_R >= low) & (ranks_R <= high)]
    if not len(kept):
        raise UsageError(f"the evidence ranks none of {len(places)} targets between {low} and {high}: widen headroom")
    logger.info("headroom: %d of %d training examples", len(kept), len(places))
    return kept


def fused_answers(
    job: Job,
    stage: str,
    teacher: Teacher,
    evidence: Evidence,
    rows: Sequence[Row],
    how: How,
    paths: Path,
) -> Answers:
    """What a teacher answers together with evidence; its weight is chosen on validation and kept beside the answers.

    All processes call this together.

    Args:
        job: of the run.
        stage: whose teacher it is.
        teacher: the teacher.
        evidence: of the same catalog.
        rows: of the users.
        how: as the teacher is asked by itself.
        paths: where the reasonings lie that the teacher by itself has written for them in this mode.
    """
    choice = alpha_of(job, teacher, evidence, how)
    logger.info("%s (%s) with evidence: alpha %g chosen on validation", stage, how.mode, choice.alpha)
    keep_choice(alpha_file(job.folder, stage, how.mode), choice)
    fused = FusedRanker(LikelihoodRanker(teacher.catalog, teacher.model), evidence, choice.alpha)
    sampler = KeptSampler.read(paths, job.sampler(teacher.model, teacher.tokens))
    return answer_together(rows, fused, sampler, teacher.tokens, dataclasses.replace(how, keep_paths=False))


def alpha_file(run_dir: Path, stage: str, mode: str) -> Path:
    """Where the weight of a row of teacher and evidence is kept."""
    return run_dir / "fusion" / f"{stage}.{mode}.json"


def alpha_of(
    job: Job, teacher: Teacher, evidence: Evidence, how: How, alphas: Sequence[float] = ALPHAS
) -> AlphaChoice:
    """The teacher's weight that is best on the run's validation users, whom all processes share.

    Args:
        job: of the run.
        teacher: the teacher.
        evidence: of the same catalog.
        how: as it is asked.
        alphas: what to try.
    """
    state = PartialState()
    rows = list(job.rows("validation", teacher, job.task.args.max_validation))
    own = rows[state.process_index :: state.num_processes]
    fused = FusedRanker(LikelihoodRanker(teacher.catalog, teacher.model), evidence, 0.0)
    sampler = job.sampler(teacher.model, teacher.tokens)
    log_p, scores, place = [], [], []
    for batch, _, _, marked in reasoned(own, sampler, teacher.tokens, how):
        ids = [row.example_id for row in batch]
        candidates_B_K = np.array(fused.evidence.candidates(ids))
        log_p.append(fused.log_probs(marked, candidates_B_K))
        scores.append(fused.evidence.log_scores(ids))
        place.append(places(candidates_B_K, teacher.catalog.indices([row.target_id for row in batch])))
    parts = gather_object([(log_p, scores, place)])
    log_p_B_G_K, log_scores_B_K, place_B = (
        np.concatenate([array for part in parts for array in part[column]]) for column in range(3)
    )
    return choose_alpha(log_p_B_G_K, log_scores_B_K, place_B, alphas)


def keep_choice(file: Path, choice: AlphaChoice | GammaChoice) -> None:
    """Writes what was chosen on validation, and what was tried; the main process alone."""
    if PartialState().is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(dataclasses.asdict(choice), indent=2))


def made_with_evidence(evidence: Evidence) -> dict[str, object]:
    """What answers depend on besides the teacher, ready for JSON."""
    card = read_json(evidence.maker.folder / CARD)
    return {"evidence": card | {"seeds": [evidence.seed]}, "trees": evidence.ranker.rounds}
