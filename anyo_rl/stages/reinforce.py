"""Reinforcement of a teacher's reasoning as a stage of a run: GRPO or PPO."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from trl import GRPOConfig, ModelConfig

from anyo_rl.catalog.item_tokens import adapters, without_dropout
from anyo_rl.evidence.fusion import Engine
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker
from anyo_rl.ranking.written import written_ranker
from anyo_rl.run.folder import METRICS
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.arguments import GrpoArguments, PpoArguments, ReasonerArguments
from anyo_rl.stages.checks import check_examples
from anyo_rl.stages.finish import finish_stage
from anyo_rl.stages.fusion import open_evidence, training_fusion, with_headroom
from anyo_rl.stages.job import Job
from anyo_rl.stages.sample import path_ranker
from anyo_rl.stages.spread import keep_spread
from anyo_rl.stages.written import training_ranker
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.critic import attach_critic, train_critic
from anyo_rl.training.loop.callbacks import keep_best, stopping
from anyo_rl.training.loop.closing import forget_last_trainer
from anyo_rl.training.loop.guard_rails import watching
from anyo_rl.training.objective import Objective, check_credit, check_item_loss, check_writing
from anyo_rl.training.prm import load_classifier
from anyo_rl.training.reasoner import ReasonerTrainer
from anyo_rl.training.rewards.schedule import RewardSchedules, parse_schedules
from anyo_rl.training.rewards.setup import check_rewards, prepare_rewards
from anyo_rl.training.rewards.timeout import limit_time

Reward = Callable[..., Any]
BEYOND_EVIDENCE = "beyond_evidence"
VECTORS = "vectors"  # the folder of a stage in which the vectors of titles lie


def checked_rewards(
    load_rewards: Callable[..., list[Reward]], args: ReasonerArguments, training_args: GRPOConfig
) -> list[Reward]:
    """The rewards that a run names, checked against its settings before anything is trained.

    Args:
        load_rewards: makes rewards of their names and parameters (`reward.load.load_rewards`).
        args: what is rewarded.
        training_args: TRL's settings.

    Raises:
        ValueError: a reward, its parameters, its weight or its schedule cannot be used.
    """
    if BEYOND_EVIDENCE in args.reward_funcs:
        raise UsageError(
            f"reward_funcs has {BEYOND_EVIDENCE}: it is the fused gain less what the evidence gains by itself, the "
            "same for all completions of a prompt, which the mean of the group or a critic takes out again. Give "
            "evidence and name ndcg, which is the fused gain then; what is gained beyond evidence is in the logs"
        )
    rewards = load_rewards(args.reward_funcs, args.reward_kwargs)
    weights = training_args.reward_weights
    if weights is not None and len(weights) != len(rewards):
        raise UsageError(
            f"reward_weights has {len(weights)} and reward_funcs {len(rewards)}: expected a weight for each reward"
        )
    parse_schedules(args.reward_schedules, args.reward_funcs)
    rewards = limit_time(rewards, args.reward_timeout_s, args.reward_on_timeout)
    check_rewards(rewards, training_args)
    return rewards


def checked_method(
    args: GrpoArguments | PpoArguments, training_args: GRPOConfig, model_args: ModelConfig
) -> Credit | Ppo:
    """What the tokens of a reasoning are credited with; that it goes with the other settings is checked here.

    Args:
        args: what is rewarded, and what trains the answer.
        training_args: TRL's settings.
        model_args: whether adapters are trained.

    Raises:
        UsageError: settings do not go together.
        ValueError: see `GrpoArguments.method` and `PpoArguments.method`.
    """
    method = args.method()
    if args.ranker != "likelihood":
        check_item_loss(args.item_loss)
        check_writing(training_args)
    check_credit(method, training_args, written=args.ranker != "likelihood")
    if method.critic == "separate" and model_args.use_peft:
        raise UsageError("a separate critic is trained whole: set critic to head, or use_peft to false")
    return method


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
        UsageError: no example is left to train on.
    """
    if job.teacher_folder(stage).exists():
        return job.teacher_folder(stage)
    check_examples(args, job.task)
    opening, stage_dir = job.opening, job.folder / stage
    fusion = training_fusion(job, stage, start, args)
    teacher = opening.load(start)
    ids, tokenizer = teacher.ids, teacher.tokens.tokenizer
    rows = job.rows("train", teacher)
    if args.held_out_of_sft:
        rows = rows.of(job.task.rationales, wanted=False)
    evidence = open_evidence(job) if fusion is None else fusion.evidence
    rows = rows.at(with_headroom(job.task, rows.places, evidence, args.headroom))
    if args.min_gain_spread:
        sampling = Sampling(
            n=4,
            temperature=training_args.temperature,
            max_new_tokens=job.max_reasoning_tokens,
            seed=training_args.seed,
        )
        file = stage_dir / "kept_examples.json"

        def ranker() -> Engine:
            return path_ranker(teacher.answers, opening.weights(start, ids)[0], args, fusion)

        rows = rows.of(keep_spread(job, rows, ranker, teacher, args, sampling, file))
    dataset = prepare_rewards(rewards, rows, job.task, teacher.catalog, training_args.seed)
    validation = job.validation(teacher, fusion=fusion)
    training_args = keep_best(training_args, stage_dir, f"eval_{validation.metric}")
    training_args.max_completion_length = job.max_reasoning_tokens
    if args.ranker == "order":
        training_args.max_completion_length += job.order_tokens(teacher)
    encoder = job.teacher_args.item_encoder
    with whole_weights():
        written = written_ranker(
            args.ranker, teacher.answers, encoder, lambda: opening.weights(start, ids), stage_dir / VECTORS
        )
    reweighed = training_ranker(job, stage, start, written) if isinstance(written, EmbeddingRanker) else written
    stop_at_marker(teacher.model, teacher.tokens, write_item=written is not None)
    lora = without_dropout(adapters(opening.of_path(start), teacher.model, tokenizer, ids))
    if method.critic is not None:
        separate = method.critic == "separate"
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
        catalog=teacher.answers,
        tokens=teacher.tokens,
        validation=validation,
        objective=Objective(
            method=method,
            written_ranker=reweighed,
            item_loss=args.item_loss,
            item_loss_weight=args.item_loss_weight,
            rank_cap=args.rank_cap or None,
            rank_node_budget=args.rank_node_budget or None,
            fusion=fusion,
        ),
        callbacks=[*stopping(job.teacher_args.early_stopping_patience), *watching(job.folder, METRICS, stage)],
    )
    schedules = parse_schedules(args.reward_schedules, args.reward_funcs)
    trainer.add_callback(RewardSchedules(trainer, schedules))
    return finish_stage(job, stage, trainer, teacher, again)
