"""The evaluation of a run's teachers as its last stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from anyo_rl.evaluation.baselines import evaluate_baselines
from anyo_rl.evaluation.evaluator import Evaluation, weights_of
from anyo_rl.evaluation.report.page import write_report
from anyo_rl.evaluation.stages import EVIDENCE, FUSED_ROW, stage_of
from anyo_rl.evaluation.summarise import summarise
from anyo_rl.evaluation.summary import Summary, write_summary
from anyo_rl.evaluation.table import console_table, markdown_table
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.run.files import write_whole
from anyo_rl.run.launch import go_on_alone, whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.search.answers import answer_together
from anyo_rl.stages.ablation import ablate
from anyo_rl.stages.cards import write_cards
from anyo_rl.stages.causal import keep_causal
from anyo_rl.stages.fusion import fused_answers, made_with_evidence, open_evidence
from anyo_rl.stages.job import Job
from anyo_rl.stages.reranked import keep_incoming, keep_reranked, ranker_of
from anyo_rl.stages.written import (
    Writer,
    by_distance,
    check_written,
    keep_written,
    open_weights,
    trained_ranker,
    writing_of,
)


def evaluate_run(job: Job, teachers: Mapping[str, Path | str], *, baselines: bool) -> Summary | None:
    """Evaluates the teachers of a run on its test users; writes `evaluation.json`, table, report and model cards.

    All processes call this at their end, and share the users; then the main process goes on alone.

    Args:
        job: of the run.
        teachers: stage name to teacher folder; `anyo_rl.evaluation.stages` says how each is asked.
        baselines: whether to evaluate popularity, item-kNN, SASRec and the oracle too.

    Returns:
        The numbers; `None` in the other processes.
    """
    ask_teachers(job, teachers)
    return conclude(job, teachers, baselines=baselines) if go_on_alone() else None


def ask_teachers(job: Job, teachers: Mapping[str, Path | str]) -> None:
    """Keeps the answers of a run's teachers to its test users; all processes call this together.

    Args:
        job: of the run.
        teachers: stage name to teacher folder.

    Raises:
        ValueError: there is no teacher.
    """
    if not teachers:
        raise UsageError("no teacher to evaluate; name at least one stage and its folder")
    as_saved = dataclasses.replace(job.model_args, load_in_4bit=False, load_in_8bit=False)
    job = dataclasses.replace(job, model_args=as_saved)
    ranker = trained_ranker(job)
    check_written(job.teacher_args, ranker)
    evidence, writing = open_evidence(job), writing_of(job.teacher_args, ranker)
    weights = open_weights(job) if writing != "none" else None
    for stage, path in teachers.items():
        with job.opened(path) as teacher:
            tokens, catalog = teacher.tokens, teacher.catalog
            evaluation = evaluation_of(job, catalog.item_ids)
            if job.asking.questions is not None:
                with whole_weights():
                    keep_incoming(job, evaluation)
                    keep_reranked(job, evaluation, stage, teacher, path, writes=writing != "none")
                continue
            rows = job.rows_of(evaluation.test, teacher)
            for mode in stage_of(stage).modes:
                how = job.how(mode, seed=job.seed)
                ask = partial(
                    answer_together,
                    rows,
                    LikelihoodRanker(catalog, teacher.model),
                    job.sampler(teacher.model, tokens, with_log_probs=True),
                    tokens,
                    how,
                )
                made_with = {
                    "weights": weights_of(path),
                    "marker": tokens.marker_id,
                    "chat_template_kwargs": job.chat_template_kwargs,
                    "max_new_tokens": job.max_reasoning_tokens,
                    **job.teacher_args.made_with_kind,
                }
                if teacher.ids is not None:
                    made_with["item_tokens"] = catalog.tree.fingerprint
                if mode == "mixture":
                    made_with["n_paths"] = job.teacher_args.n_paths
                written_with = dict(made_with)
                with whole_weights():  # a process must not wait for others in its forwards
                    evaluation.keep(stage, mode, ask, made_with, together=True)
                    if mode == "greedy" and job.asking.kind.step_names:
                        ablate(evaluation, stage, teacher, rows, job.asking.kind.step_names)
                    if mode == "greedy" and job.teacher_args.causal_examples:
                        keep_causal(evaluation, stage, job, teacher, path)
                    if evidence is not None:
                        file = evaluation.paths(stage, mode)
                        ask = partial(fused_answers, job, stage, teacher, evidence, rows, how, file)
                        made_with |= made_with_evidence(evidence)
                        evaluation.keep(f"{stage}{FUSED_ROW}", mode, ask, made_with, together=True)
                    if writing != "none" and mode != "mixture":  # which has no one item
                        near = partial(by_distance, job, stage, teacher, writing)
                        writer = Writer(job, teacher, how, writing, near, rows, evaluation.paths(stage, mode))
                        keep_written(evaluation, stage, writer, written_with, weights=weights, evidence=evidence)
                        del near, writer
                del ask  # it holds the weights


def evaluation_of(job: Job, item_ids: Sequence[str]) -> Evaluation:
    """The evaluation of a run on its test users."""
    test = job.task.split("test", job.task.args.max_test)
    return Evaluation(job.folder, job.task, item_ids, test, job.seed)


def conclude(
    job: Job,
    teachers: Mapping[str, Path | str],
    *,
    baselines: bool,
    beside: Sequence[Path] = (),
    added: Sequence[tuple[str, str]] = (),
) -> Summary:
    """Adds baselines to the answers of teachers, and writes what they come to; the main process calls this alone.

    Args:
        job: of the run.
        teachers: as `ask_teachers` had them.
        baselines: whether to evaluate popularity, item-kNN, SASRec and the oracle too.
        beside: finished run folders of baselines, evidence or students on the same data, whose answers stand in the
            table.
        added: a row and the one that it builds on, each; see `Summary`.
    """
    evaluation = evaluation_of(job, job.task.interactions.items["item_id"].to_list())
    for folder in beside:
        evaluation.take_over(folder)
    if evidence := open_evidence(job):
        alone = partial(evaluation.score_answers, evidence.scores_of_rows)
        evaluation.keep(EVIDENCE.name, "plain", alone, made_with_evidence(evidence))
    if baselines:
        if job.teacher_args.baselines_from is not None:
            evaluation.take_over(Path(job.teacher_args.baselines_from))
        evaluate_baselines(evaluation)
    ranker = LikelihoodRanker.kind if job.asking.questions is None else ranker_of(job)
    summary = summarise(evaluation, ranker, job.teacher_args.n_paths, added)
    write_summary(job.folder, summary)
    write_whole(job.folder / "evaluation.md", markdown_table(summary))
    write_report(job.folder)
    if teachers:
        tokens, catalog = job.opening.catalog(list(teachers.values())[-1])
        write_cards(job.folder, job.task, teachers, tokens, catalog, summary)
    return summary


def show(job: Job, summary: Summary | None, teacher: Path | None = None) -> None:
    """Prints a run's table, and where its report and its teacher are; nothing in processes that have no summary."""
    if summary is None:
        return
    print(console_table(summary))
    if teacher is not None:
        print(f"teacher: {teacher}")
    print(f"report: {job.folder / 'report.html'}")
