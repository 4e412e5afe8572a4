"""Reinforcement of a teacher's reasoning as a stage of a run: GRPO and PPO."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOConfig, ModelConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.config import GrpoArguments, PpoArguments, TeacherArguments
from anyo_rl.item_tokens import adapters, load_answering, semantic_ids
from anyo_rl.launch import whole_weights
from anyo_rl.spread import keep_spread
from anyo_rl.stages import METRICS, finish_stage, teacher_folder, validation
from anyo_rl.task import Task
from anyo_rl.teacher import load_teacher, stop_at_marker
from anyo_rl.tokens import Tokens
from anyo_rl.training.callbacks import keep_best, stopping
from anyo_rl.training.critic import attach_critic, train_critic
from anyo_rl.training.guard_rails import watching
from anyo_rl.training.prm import load_classifier
from anyo_rl.training.reasoner import ReasonerTrainer
from anyo_rl.training.reward_schedule import RewardSchedules, parse_schedules
from anyo_rl.training.reward_setup import prepare_rewards
from anyo_rl.training.written import written_ranker


def train_reasoning(
    run_dir: Path,
    task: Task,
    teacher_path: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    reasoner_args: GrpoArguments | PpoArguments,
    training_args: GRPOConfig,
    reward_funcs: Sequence[Callable[..., Any]],
) -> Path:
    """Trains a teacher's reasoning by GRPO or by PPO, as `reasoner_args` are of the one or the other.

    Returns:
        The folder of the finished teacher, without a critic; if it is there already nothing is done.

    Raises:
        ValueError: adapters were asked for beside a separate critic.
    """
    stage: Literal["grpo", "ppo"] = "ppo" if isinstance(reasoner_args, PpoArguments) else "grpo"
    stage_dir = run_dir / stage
    folder = teacher_folder(stage_dir)
    if folder.exists():
        return folder
    model_args = dataclasses.replace(model_args, model_name_or_path=str(teacher_path))
    ids = semantic_ids(
        run_dir, task, teacher_args, teacher_path, partial(load_teacher, model_args), training_args.seed
    )
    load = partial(load_answering, model_args, ids)
    model, tokenizer = load()
    tokens = Tokens.of(tokenizer, teacher_args.marker_token, training_args.chat_template_kwargs)
    catalog = build_catalog(task.interactions.items, tokens, ids)
    rows = task.rows(task.split("train"), catalog, tokens)
    rows = prepare_rewards(reward_funcs, rows, task, catalog, training_args.seed)
    if reasoner_args.min_gain_spread:
        rows = keep_spread(
            rows,
            lambda: load()[0],
            catalog,
            tokens,
            stage_dir / "kept_examples.json",
            least=reasoner_args.min_gain_spread,
            max_new_tokens=teacher_args.max_reasoning_tokens,
            temperature=training_args.temperature,
            mask_history=task.args.mask_history,
            seed=training_args.seed,
        )
    training_args = keep_best(training_args, stage_dir)
    training_args.max_completion_length = teacher_args.max_reasoning_tokens
    with whole_weights():
        ranker = written_ranker(reasoner_args.ranker, catalog, reasoner_args.item_encoder, load)
    stop_at_marker(model, tokens, write_item=ranker is not None)
    peft_config = adapters(model_args, model, tokenizer, ids)
    if isinstance(reasoner_args, PpoArguments):
        separate = reasoner_args.critic == "separate"
        if separate and peft_config is not None:
            raise ValueError("a separate critic is trained whole: set critic to head, or use_peft to false")
        with whole_weights():
            attach_critic(model, load_classifier(model_args) if separate else None)
        peft_config = train_critic(peft_config)

    def start() -> PreTrainedModel:
        """What adapters are put on again, those of the critic among them."""
        whole = load()[0]
        if trainer.ppo is not None and peft_config is not None:
            attach_critic(whole)
        return whole

    AcceleratorState._reset_state()  # DeepSpeed would hold the last stage's batch size against this one's
    trainer = ReasonerTrainer(
        model=model,
        args=training_args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
        reward_funcs=reward_funcs,
        catalog=catalog,
        tokens=tokens,
        validation=validation(task, catalog, tokens, teacher_args, teacher_args.eval_mode),
        written_ranker=ranker,
        item_loss=reasoner_args.item_loss,
        item_loss_weight=reasoner_args.item_loss_weight,
        credit=reasoner_args.credit() if isinstance(reasoner_args, GrpoArguments) else None,
        ppo=reasoner_args.ppo() if isinstance(reasoner_args, PpoArguments) else None,
        mask_history=task.args.mask_history,
        rank_cap=reasoner_args.rank_cap or None,
        rank_node_budget=reasoner_args.rank_node_budget or None,
        callbacks=[*stopping(teacher_args.early_stopping_patience), *watching(run_dir, METRICS, stage)],
    )
    schedules = parse_schedules(reasoner_args.reward_schedules, reasoner_args.reward_funcs)
    trainer.add_callback(RewardSchedules(trainer, schedules))
    finish_stage(trainer, stage_dir, tokens, start, ids)
    return folder
