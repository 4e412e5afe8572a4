"""An agent as stages of a run: SFT on solved goals, GRPO on episodes, the same without tools, and their comparison."""

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer
from trl import GRPOConfig, GRPOTrainer, ModelConfig, SFTConfig, get_peft_config

from anyo_rl.agent.environment import GoalEnvironment, chats, with_verdicts
from anyo_rl.agent.outcomes import (
    AGENT,
    AGENT_SFT,
    NO_TOOLS,
    NO_TOOLS_SFT,
    Outcome,
    planners,
    read_outcomes,
    table,
    write_outcomes,
)
from anyo_rl.agent.planning import Planner, goal_prompt
from anyo_rl.agent.report import write_report
from anyo_rl.agent.rollouts import Asker, rollout_func
from anyo_rl.agent.tools import Desk
from anyo_rl.agent.training import (
    GREEDY,
    SHOWN,
    VALUE,
    AgentGRPOTrainer,
    AgentSFTTrainer,
    GoalValidation,
    UntilFlops,
    lessons,
    prompts,
)
from anyo_rl.catalog.item_tokens import without_dropout
from anyo_rl.data.goals import GoalWorld
from anyo_rl.data.toy.goals import make_goal_world
from anyo_rl.evaluation.convergence import read_trainings
from anyo_rl.run.files import write_whole
from anyo_rl.run.folder import METRICS, resolve, start_run
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.agent_arguments import AgentArguments
from anyo_rl.stages.finish import load_checkpoint
from anyo_rl.stages.job import TEACHER
from anyo_rl.teacher.load import load_teacher, stop_at_marker
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, train_to_the_end
from anyo_rl.training.loop.checkpoints import best_checkpoint
from anyo_rl.training.loop.closing import close_trainer, forget_last_trainer
from anyo_rl.training.loop.console import show_on_console
from anyo_rl.training.loop.flops import Flops
from anyo_rl.training.loop.weights import unquantised

TOKENIZER_GOALS = 300  # whose texts a tokenizer made from scratch is trained on
MOST_UPDATES = 100_000

logger = logging.getLogger(__name__)
Reward = Callable[..., Any]


@dataclass(frozen=True)
class AgentJob:
    """What the recipe was asked.

    Attributes:
        folder: the run folder.
        args: the world, tools and limits.
        model_args: how teachers are loaded; the path in it is what the run starts from, none makes a tiny one.
        training_args: TRL's settings of GRPO.
        world: the goals.
    """

    folder: Path
    args: AgentArguments
    model_args: ModelConfig
    training_args: GRPOConfig
    world: GoalWorld

    def teacher_folder(self, stage: str) -> Path:
        """Where a stage keeps its finished teacher; that the folder is there says that the stage is done."""
        return self.folder / stage / TEACHER

    @cached_property
    def _tokenizer(self) -> Any:
        """Of teachers made from scratch: it knows whatever agents, and teachers without tools, read and write."""
        planner = Planner.of(self.world, n_results=self.args.n_results)
        texts = [f"{offer.title} {offer.category}\n" for offer in self.world.offers]
        for goal in self.world.goals["train"][:TOKENIZER_GOALS]:
            texts.append(goal_prompt(goal, with_profile=True))
            desk = Desk(planner.tools(goal))
            for offer in planner.world.best(goal):
                texts.append(f"{planner.search(goal, f'{offer.category} {goal.liked}')}\n")
            calls = ("profile", f"plan: {planner.written(planner.world.best(goal)[:1])}", "search: x")
            texts += [f"{call}\n{said.text}\n" for call in calls if (said := desk.answer(call))]
        return train_tokenizer(texts, self.args.tiny_vocab_size)

    def open(self, path: Path | str | None) -> tuple[PreTrainedModel, Tokens]:
        """A teacher: that of a path, of the run's own path, or one from scratch.

        Raises:
            UsageError: there is none, or it thinks in a way of its own, which has no place for calls in text.
        """
        path = path or self.model_args.model_name_or_path
        if path is None:
            tokenizer, args = self._tokenizer, self.args
            most = args.max_episode_tokens + 128
            model: Any = make_tiny_teacher(
                tokenizer,
                hidden_size=args.tiny_hidden_size,
                n_layers=args.tiny_layers,
                max_length=most,
                seed=self.training_args.seed,
            )
        else:
            told = copy.copy(self.model_args)
            told.model_name_or_path = str(path)
            model, tokenizer = load_teacher(told)
        tokens = Tokens.of(tokenizer, self.args.marker_token, self.training_args.chat_template_kwargs)
        if tokens.thinks and self.args.protocol == "text":
            raise UsageError(
                "the teacher's marker is </think>, and between <think> and </think> no tool is answered: name another "
                "marker_token, or set protocol to tools"
            )
        return model, tokens

    def asker(self, tokens: Tokens, *, with_tools: bool) -> Asker:
        """How goals are asked."""
        args = self.args
        planner = Planner.of(self.world, tokens.safe_text, args.n_results)
        return Asker(planner, tokens, args.limits, with_tools, args.max_result_chars, args.tool_timeout_s)


def start_agent(args: AgentArguments, model_args: ModelConfig, training_args: GRPOConfig) -> AgentJob:
    """Makes the world and claims the run folder for these arguments.

    Raises:
        UsageError: settings contradict one another, or cannot be honoured.
        RunFolderError: the folder is of a run with other arguments, or in use.
    """
    if training_args.use_vllm and args.protocol == "text":
        raise UsageError("use_vllm is true, and episodes in text are sampled by transformers: set it to false")
    if args.protocol == "tools" and model_args.model_name_or_path is None:
        raise UsageError(
            "protocol is tools and there is no model_name_or_path: expected a chat model that knows tools"
        )
    if args.n_solved > args.n_train_goals:
        raise UsageError(f"n_solved is {args.n_solved}: expected at most n_train_goals, {args.n_train_goals}")
    world, folder = make_goal_world(args.config), Path(training_args.output_dir)
    report = {"n_offers": len(world.offers), **{f"n_{split}": len(goals) for split, goals in world.goals.items()}}
    fingerprint = {"world": hashlib.sha256(repr((world.offers, world.related, world.goals)).encode()).hexdigest()}
    start_run(folder, resolve(args, model_args, training_args), report, fingerprint)
    return AgentJob(folder, args, model_args, training_args, world)


def train_agent(job: AgentJob, rewards: Sequence[Reward], *, with_tools: bool = True) -> dict[str, Path]:
    """Trains an agent, or the same model without tools: SFT on solved goals, then GRPO.

    Without tools GRPO goes on until both stages have had as many FLOPs as those of the agent, which has to be
    finished.

    Args:
        job: of the run.
        rewards: of answers.
        with_tools: whether there are tools.

    Returns:
        Stage name to teacher.
    """
    if job.args.protocol == "tools":
        return {AGENT: _train_by_template(job, rewards)} if with_tools else {}
    sft, grpo = (AGENT_SFT, AGENT) if with_tools else (NO_TOOLS_SFT, NO_TOOLS)
    started = _train_sft(job, sft, with_tools)
    return {sft: started, grpo: _train_grpo(job, grpo, started, rewards, with_tools)}


def _train_sft(job: AgentJob, stage: str, with_tools: bool) -> Path:
    if job.teacher_folder(stage).exists():
        return job.teacher_folder(stage)
    model, tokens = job.open(None)
    asker = job.asker(tokens, with_tools=with_tools)
    solved = job.world.goals["train"][: job.args.n_solved]
    dataset = lessons(asker, solved, job.args.n_names if with_tools else 1, job.training_args.seed)
    longest = max(map(len, dataset["input_ids"]))
    if longest > (most := model.config.max_position_embeddings):
        raise UsageError(f"a solved goal takes {longest} tokens and the model {most}: lower n_results")
    stop_at_marker(model, tokens, write_item=True)
    forget_last_trainer()
    trainer = AgentSFTTrainer(
        model=model,
        args=keep_best(_sft_config(job), job.folder / stage, f"eval_{VALUE}"),
        train_dataset=dataset,
        processing_class=tokens.tokenizer,
        peft_config=get_peft_config(job.model_args),
        validation=GoalValidation(asker, job.world.goals["validation"]),
        callbacks=[MetricsFile(job.folder / METRICS, stage)],
    )
    return _finish(job, stage, trainer, tokens, None)


def _sft_config(job: AgentJob) -> SFTConfig:
    """SFT's settings: the run's own, where it has one, and else GRPO's."""
    args, grpo = job.args, job.training_args
    every = max(1, args.sft_steps // 4)
    return SFTConfig(
        output_dir=grpo.output_dir,
        max_steps=args.sft_steps,
        per_device_train_batch_size=args.sft_batch_size,
        learning_rate=args.sft_learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, args.sft_steps // 10),
        adam_beta2=0.98,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=grpo.logging_steps,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **{
            name: getattr(grpo, name)
            for name in ("seed", "use_cpu", "bf16", "fp16", "report_to", "ddp_backend", "gradient_checkpointing")
        },
    )


def _train_grpo(job: AgentJob, stage: str, start: Path, rewards: Sequence[Reward], with_tools: bool) -> Path:
    if job.teacher_folder(stage).exists():
        return job.teacher_folder(stage)
    model, tokens = job.open(start)
    asker, goals = job.asker(tokens, with_tools=with_tools), job.world.goals["train"]
    args = keep_best(job.training_args, job.folder / stage, f"eval_{VALUE}")
    args.max_completion_length = job.args.max_episode_tokens
    until = None
    if not with_tools:
        spent = {name: one.flops or 0.0 for name, one in read_trainings(job.folder / METRICS).items()}
        until = spent[AGENT_SFT] + spent[AGENT] - spent[NO_TOOLS_SFT]
        args.max_steps = MOST_UPDATES
    stop_at_marker(model, tokens, write_item=True)
    sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    forget_last_trainer()
    trainer = AgentGRPOTrainer(
        model=model,
        args=args,
        train_dataset=prompts(asker, goals),
        processing_class=tokens.tokenizer,
        peft_config=without_dropout(get_peft_config(job.model_args)),
        reward_funcs=list(rewards),
        rollout_func=rollout_func(asker, goals, sampling),
        validation=GoalValidation(asker, job.world.goals["validation"]),
        callbacks=[MetricsFile(job.folder / METRICS, stage)],
    )
    return _finish(job, stage, trainer, tokens, start, until)


def _train_by_template(job: AgentJob, rewards: Sequence[Reward]) -> Path:
    """GRPO of a chat model that calls tools by its template: no SFT, and validation by the same rewards."""
    if job.teacher_folder(AGENT).exists():
        return job.teacher_folder(AGENT)
    model, tokens = job.open(None)
    planner = Planner.of(job.world, tokens.safe_text, job.args.n_results)
    goals = {goal.goal_id: goal for split in job.world.goals.values() for goal in split}
    args = keep_best(job.training_args, job.folder / AGENT, "eval_reward")
    args.max_completion_length = job.args.max_episode_tokens
    args.max_tool_calling_iterations = job.args.max_turns
    forget_last_trainer()
    trainer = GRPOTrainer(
        model=model,
        args=args,
        train_dataset=chats(job.world.goals["train"]),
        eval_dataset=chats(job.world.goals["validation"]),
        processing_class=tokens.tokenizer,
        peft_config=without_dropout(get_peft_config(job.model_args)),
        reward_funcs=[with_verdicts(reward) for reward in rewards],
        environment_factory=partial(
            GoalEnvironment, planner, goals, tokens.safe_text, job.args.max_result_chars, job.args.tool_timeout_s
        ),
        callbacks=[MetricsFile(job.folder / METRICS, AGENT)],
    )
    return _finish(job, AGENT, trainer, tokens, job.model_args.model_name_or_path)


def _finish(
    job: AgentJob, stage: str, trainer: Trainer, tokens: Tokens, start: Path | str | None, until: float | None = None
) -> Path:
    """Trains to the end, saves the best teacher, and closes the trainer."""
    metric = trainer.args.metric_for_best_model
    show_on_console(trainer, stage, SHOWN if metric == f"eval_{VALUE}" else {"reward": "reward"})
    trainer.add_callback(Flops(trainer))
    if until is not None:
        trainer.add_callback(UntilFlops(trainer, until))
    train_to_the_end(trainer, job.folder / stage)
    if job.args.protocol == "tools":
        trainer.evaluate(chats(job.world.goals["test"]), metric_key_prefix="test")
    if trainer.accelerator.is_main_process:
        with whole_weights():
            best = best_checkpoint(job.folder / stage, metric)
            model = load_checkpoint(best, lambda: job.open(start)[0]) if best else unquantised(job.open(start)[0])
        stop_at_marker(model, tokens, write_item=True)
        save_teacher(model, tokens.tokenizer, job.teacher_folder(stage))
    trainer.accelerator.wait_for_everyone()
    close_trainer(trainer)
    return job.teacher_folder(stage)


def evaluate_agents(job: AgentJob, teachers: Mapping[str, Path]) -> dict[str, list[Outcome]]:
    """Asks each teacher all test goals, greedily, and sets the planners beside them; the main process does it alone.

    What is there already is not asked again.
    """
    goals = job.world.goals["test"]
    for name, outcomes in planners(job.world, goals).items():
        write_outcomes(job.folder, name, outcomes)
    there = read_outcomes(job.folder)
    asked = teachers if job.args.protocol == "text" else {}
    for name, path in ((name, path) for name, path in asked.items() if name not in there):
        model, tokens = job.open(path)
        device = "cuda" if torch.cuda.is_available() and not job.training_args.use_cpu else "cpu"
        asker = job.asker(tokens, with_tools=name in (AGENT, AGENT_SFT))
        episodes = asker.play(model.to(device).eval(), goals, GREEDY)
        outcomes = [
            Outcome.of(goal, asker.judge(goal, episode), episode)
            for goal, episode in zip(goals, episodes, strict=True)
        ]
        write_outcomes(job.folder, name, outcomes)
    return read_outcomes(job.folder)


def show_agents(job: AgentJob, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Prints the table, and writes it and the report."""
    text = table([outcomes])
    write_whole(job.folder / "outcomes.md", f"{text}\n")
    report = write_report(job.folder, job.world, outcomes)
    print(f"{text}\n\nreport: {report}")
