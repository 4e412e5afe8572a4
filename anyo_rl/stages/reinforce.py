"""Reinforcement of a teacher's reasoning as a stage of a run: GRPO and PPO."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOConfig, ModelConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.item_tokens import adapters, load_answering, semantic_ids
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.llm.http import ServerError
from anyo_rl.ranking.written import written_ranker
from anyo_rl.reasoning.rows import make_rows
from anyo_rl.run.folder import METRICS, resolve, start_run
from anyo_rl.run.launch import check_launch, whole_weights
from anyo_rl.stages.arguments import GrpoArguments, PpoArguments, ReasonerArguments, TeacherArguments, plain_errors
from anyo_rl.stages.evaluate import evaluate_run
from anyo_rl.stages.finish import finish_stage, teacher_folder, validation
from anyo_rl.stages.spread import keep_spread
from anyo_rl.stages.warm_start import parse_warm_start, train_warm_start
from anyo_rl.teacher.load import load_teacher, stop_at_marker
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.critic import attach_critic, train_critic
from anyo_rl.training.loop.callbacks import check_saves, keep_best, stopping
from anyo_rl.training.loop.guard_rails import watching
from anyo_rl.training.prm import load_classifier
from anyo_rl.training.reasoner import ReasonerTrainer
from anyo_rl.training.rewards.schedule import RewardSchedules, parse_schedules
from anyo_rl.training.rewards.setup import check_rewards, prepare_rewards
from anyo_rl.training.rewards.timeout import limit_time


def reinforce(
    data_args: DataArguments,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    reasoner_args: GrpoArguments | PpoArguments,
    training_args: GRPOConfig,
    config: Path | None,
    load_rewards: Callable[..., list[Callable[..., Any]]],
) -> dict[str, Any] | None:
    """The job of a recipe that reinforces: warm start, GRPO or PPO, comparisons, evaluation; all processes call it.

    Args:
        data_args: the data.
        model_args: how the model is loaded, and its adapters.
        teacher_args: how a teacher is made, validated and evaluated.
        reasoner_args: what is rewarded, and how: GRPO's or PPO's.
        training_args: TRL's settings.
        config: the config file that they came from.
        load_rewards: makes rewards of their names and parameters (`reward.load.load_rewards`).

    Returns:
        See `anyo_rl.stages.evaluate.evaluate_run`.

    Raises:
        SystemExit: with the message alone: what was asked for cannot be.
    """
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request of a reward
    check_launch()
    with plain_errors(ValueError, OSError, ServerError):
        rewards = load_rewards(reasoner_args.reward_funcs, reasoner_args.reward_kwargs)
        parse_schedules(reasoner_args.reward_schedules, reasoner_args.reward_funcs)
        rewards = limit_time(rewards, reasoner_args.reward_timeout_s, reasoner_args.reward_on_timeout)
        check_rewards(rewards, training_args)
        check_saves(training_args)
        method = reasoner_args.method()  # a wrong setting, or no PRM, is said before a warm start
    with plain_errors(ValueError):
        warm_start = parse_warm_start(reasoner_args, config, training_args, teacher_args)
    arguments = resolve(data_args, model_args, teacher_args, reasoner_args, training_args)
    arguments |= warm_start.arguments() if warm_start else {}
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    start_run(run_dir, arguments, task.report)

    chat_template_kwargs = training_args.chat_template_kwargs
    teachers = train_warm_start(run_dir, task, model_args, warm_start, chat_template_kwargs=chat_template_kwargs)
    teachers[stage_name(method)] = train_reasoning(
        run_dir, task, teachers["sft"], model_args, teacher_args, reasoner_args, training_args, rewards, method
    )
    return evaluate_run(
        run_dir,
        task,
        teachers,
        model_args,
        teacher_args,
        baselines=reasoner_args.baselines,
        seed=training_args.seed,
        chat_template_kwargs=chat_template_kwargs,
    )


def stage_name(method: Credit | Ppo | None) -> str:
    """What a stage trained by a method is called, and its folder."""
    return "ppo" if isinstance(method, Ppo) else "grpo"


def train_reasoning(
    run_dir: Path,
    task: Task,
    teacher_path: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    reasoner_args: ReasonerArguments,
    training_args: GRPOConfig,
    reward_funcs: Sequence[Callable[..., Any]],
    method: Credit | Ppo | None,
) -> Path:
    """Trains a teacher's reasoning by PPO, or by GRPO with credit for its steps or for the outcome alone (`None`).

    Returns:
        The folder of the finished teacher, without a critic; if it is there already nothing is done.

    Raises:
        ValueError: adapters were asked for beside a separate critic.
    """
    ppo = method if isinstance(method, Ppo) else None
    stage = stage_name(method)
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
    rows = make_rows(task, task.split("train"), catalog, tokens)
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
    if ppo is not None:
        separate = ppo.critic == "separate"
        if separate and peft_config is not None:
            raise ValueError("a separate critic is trained whole: set critic to head, or use_peft to false")
        with whole_weights():
            attach_critic(model, load_classifier(model_args) if separate else None)
        peft_config = train_critic(peft_config)

    def start() -> PreTrainedModel:
        """What adapters are put on again, those of the critic among them."""
        whole = load()[0]
        if ppo is not None and peft_config is not None:
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
        credit=method if isinstance(method, Credit) else None,
        ppo=ppo,
        mask_history=task.args.mask_history,
        rank_cap=reasoner_args.rank_cap or None,
        rank_node_budget=reasoner_args.rank_node_budget or None,
        callbacks=[*stopping(teacher_args.early_stopping_patience), *watching(run_dir, METRICS, stage)],
    )
    schedules = parse_schedules(reasoner_args.reward_schedules, reasoner_args.reward_funcs)
    trainer.add_callback(RewardSchedules(trainer, schedules))
    finish_stage(trainer, stage_dir, tokens, start, ids)
    return folder
