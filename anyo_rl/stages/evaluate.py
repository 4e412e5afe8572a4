"""The evaluation of a run's teachers as its last stage."""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trl import ModelConfig

from anyo_rl.data.task import Task
from anyo_rl.evaluation.evaluator import REASONING_MODES, Evaluation, weights_of
from anyo_rl.evaluation.report.page import write_report
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows
from anyo_rl.run.files import write_whole
from anyo_rl.run.launch import go_on_alone, whole_weights
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import answer_together
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.cards import write_cards
from anyo_rl.stages.opening import open_teacher


def evaluate_run(
    run_dir: Path,
    task: Task,
    teachers: Mapping[str, Path | str],
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    *,
    baselines: bool,
    seed: int,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Evaluates the teachers of a run on its test users; writes `evaluation.json`, table, report and model cards.

    All processes call this at their end, and share the users; then the main process goes on alone.

    Args:
        run_dir: the run folder.
        task: the data.
        teachers: stage name to teacher folder; the stage `direct` answers without reasoning.
        model_args: how teachers are loaded.
        teacher_args: the marker, the number of paths and the length of a reasoning.
        baselines: whether to evaluate popularity, item-kNN, SASRec and the oracle too.
        seed: of draws and intervals.
        chat_template_kwargs: what the chat template is told, as in training.

    Returns:
        What `evaluation.json` has; `None` in the other processes.
    """
    model_args = dataclasses.replace(model_args, load_in_4bit=False, load_in_8bit=False)  # as they were saved
    test = task.split("test", task.args.max_test)
    evaluation = None
    for stage, path in teachers.items():
        opened = open_teacher(run_dir, task, path, model_args, teacher_args, seed, chat_template_kwargs)
        tokens, catalog = opened.tokens, opened.catalog
        evaluation = Evaluation(run_dir, task, catalog, test, seed)
        rows = make_rows(task, test, catalog, tokens)
        for mode in ("plain",) if stage == "direct" else REASONING_MODES:
            ask = partial(
                answer_together,
                rows,
                LikelihoodRanker(catalog, opened.model),
                TransformersSampler(opened.model, tokens, with_log_probs=True),
                tokens,
                mode,
                n_paths=teacher_args.n_paths,
                max_new_tokens=teacher_args.max_reasoning_tokens,
                seed=seed,
                mask_history=task.args.mask_history,
            )
            made_with = {
                "weights": weights_of(path),
                "marker": tokens.marker_id,
                "chat_template_kwargs": chat_template_kwargs,
                "max_new_tokens": teacher_args.max_reasoning_tokens,
            }
            if opened.ids is not None:
                made_with["item_tokens"] = catalog.tree.fingerprint
            if mode == "mixture":
                made_with["n_paths"] = teacher_args.n_paths
            with whole_weights():  # a process must not wait for others in its forwards
                evaluation.keep(stage, mode, ask, made_with, together=True)
    if evaluation is None:
        raise ValueError("no teacher to evaluate; name at least one stage and its folder")
    if not go_on_alone():
        return None
    if baselines:
        evaluation.baselines()
    summary = evaluation.summary(LikelihoodRanker.kind, teacher_args.n_paths)
    write_whole(run_dir / "evaluation.json", json.dumps(summary, indent=2))
    write_whole(run_dir / "evaluation.md", markdown_table(summary))
    write_report(run_dir)
    write_cards(run_dir, task, teachers, tokens, summary)
    return summary
