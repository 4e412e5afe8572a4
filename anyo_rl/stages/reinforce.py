"""Reinforcement of a teacher's reasoning as a stage of a run: GRPO or PPO."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from trl import GRPOConfig

from anyo_rl.catalog.item_tokens import adapters, without_dropout
from anyo_rl.ranking.written import written_ranker
from anyo_rl.run.folder import METRICS
from anyo_rl.run.launch import whole_weights
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.arguments import ReasonerArguments
from anyo_rl.stages.finish import finish_stage
from anyo_rl.stages.job import Job
from anyo_rl.stages.spread import keep_spread
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.critic import attach_critic, train_critic
from anyo_rl.training.loop.callbacks import keep_best, stopping
from anyo_rl.training.loop.closing import forget_last_trainer
from anyo_rl.training.loop.guard_rails import watching
from anyo_rl.training.objective import Objective
from anyo_rl.training.prm import load_classifier
from anyo_rl.training.reasoner import ReasonerTrainer
from anyo_rl.training.rewards.schedule import RewardSchedules, parse_schedules
from anyo_rl.training.rewards.setup import check_rewards, prepare_rewards
from anyo_rl.training.rewards.timeout import limit_time

Reward = Callable[..., Any]


def checked_rewards(
    load_rewards: Callable[..., list[Reward]], args: ReasonerArguments, training_args: GRPOConfig
) -> list[Reward]:
    """The rewards that a run names, checked against its settings before anything is trained.

    Args:
        load_rewards: makes rewards of their names and parameters (`reward.load.load_rewards`).
        args: what is rewarded.
        training_args: TRL's settings.

    Raises:
        ValueError: a reward, its parameters or its schedule cannot be used.
    """
    rewards = load_rewards(args.reward_funcs, args.reward_kwargs)
    parse_schedules(args.reward_schedules, args.reward_funcs)
    rewards = limit_time(rewards, args.reward_timeout_s, args.reward_on_timeout)
    check_rewards(rewards, training_args)
    return rewards


def train_reasoning(
    job: Job,
    stage: str,
    start: Path | str,
    args: ReasonerArguments,
    training_args: GRPOConfig,
    rewards: Sequence[Reward],
    method: Credit | Ppo,
) -> Path:
    """Trains a teacher's reasoning by GRPO (`Credit`) or PPO.

    Args:
        job: of the run.
        stage: name of the stage and of its folder.
        start: the teacher that training starts from.
        args: what is rewarded, and what trains the answer.
        training_args: TRL's settings.
        rewards: what `checked_rewards` gave.
        method: what the tokens of a reasoning are credited with.

    Returns:
        The folder of the finished teacher, without a critic; if it is there already nothing is done.

    Raises:
        ValueError: adapters were asked for beside a separate critic, or no example is left to train on.
    """
    if job.teacher_folder(stage).exists():
        return job.teacher_folder(stage)
    opening, stage_dir = job.opening, job.folder / stage
    teacher = opening.load(start)
    ids, tokenizer = teacher.ids, teacher.tokens.tokenizer
    rows = job.rows("train", teacher)
    if args.held_out_of_sft:
        rows = [row for row in rows if row.example_id not in job.task.rationales]
        if not rows:
            raise ValueError(
                "every training example has a rationale, and held_out_of_sft leaves those out: set it to false, or "
                "lower rationale_share"
            )
    if args.min_gain_spread:
        rows = keep_spread(
            rows,
            lambda: opening.weights(start, ids)[0],
            teacher,
            stage_dir / "kept_examples.json",
            Sampling(
                n=4,
                temperature=training_args.temperature,
                max_new_tokens=job.teacher_args.max_reasoning_tokens,
                seed=training_args.seed,
            ),
            least=args.min_gain_spread,
        )
    dataset = prepare_rewards(rewards, rows, job.task, teacher.catalog, training_args.seed)
    training_args = keep_best(training_args, stage_dir)
    training_args.max_completion_length = job.teacher_args.max_reasoning_tokens
    with whole_weights():
        ranker = written_ranker(args.ranker, teacher.catalog, args.item_encoder, lambda: opening.weights(start, ids))
    stop_at_marker(teacher.model, teacher.tokens, write_item=ranker is not None)
    lora = without_dropout(adapters(opening.of_path(start), teacher.model, tokenizer, ids))
    if method.critic is not None:
        separate = method.critic == "separate"
        if separate and lora is not None:
            raise ValueError("a separate critic is trained whole: set critic to head, or use_peft to false")
        with whole_weights():
            attach_critic(teacher.model, load_classifier(opening.of_path(start)) if separate else None)
        lora = train_critic(lora)

    def again() -> PreTrainedModel:
        """What adapters are put on again, those of the critic among them."""
        whole = opening.weights(start, ids)[0]
        if method.critic is not None and lora is not None:
            attach_critic(whole)
        return whole

    forget_last_trainer()
    trainer = ReasonerTrainer(
        model=teacher.model,
        args=training_args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora,
        reward_funcs=rewards,
        catalog=teacher.catalog,
        tokens=teacher.tokens,
        validation=job.validation(teacher),
        objective=Objective(
            method=method,
            written_ranker=ranker,
            item_loss=args.item_loss,
            item_loss_weight=args.item_loss_weight,
            rank_cap=args.rank_cap or None,
            rank_node_budget=args.rank_node_budget or None,
        ),
        callbacks=[*stopping(job.teacher_args.early_stopping_patience), *watching(job.folder, METRICS, stage)],
    )
    schedules = parse_schedules(args.reward_schedules, args.reward_funcs)
    trainer.add_callback(RewardSchedules(trainer, schedules))
    return finish_stage(job, stage, trainer, teacher, again)
