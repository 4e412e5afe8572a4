"""Trains a teacher's reasoning by GRPO on the rank of the item that the user really chose.

    accelerate launch recipes/grpo_teacher.py
    accelerate launch recipes/grpo_teacher.py --config recipes/configs/ml-100k/grpo_teacher.yaml
    accelerate launch recipes/grpo_teacher.py --reward_funcs my_reward.py:my_reward ndcg --reward_weights 0.2 1.0

With no arguments it runs on the embedded toy world: a warm start by SFT on the rationales of a few users, GRPO on all
users, the same teacher without reasoning, baselines, and a report. Run again, it goes on from where it was.
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path

from accelerate import PartialState
from trl import GRPOConfig, ModelConfig, SFTConfig

from anyo_rl.config import ReasonerArguments, TeacherArguments, parse, plain_errors, sft_config_path
from anyo_rl.evaluation.table import console_table
from anyo_rl.launch import check_launch
from anyo_rl.stages import evaluate_run, start_run, train_grpo, train_sft
from anyo_rl.task import DataArguments, load_task
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, build, train, evaluate, save."""
    data_args, model_args, teacher_args, reasoner_args, training_args, config = parse(
        (DataArguments, ModelConfig, TeacherArguments, ReasonerArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "grpo_teacher.yaml",
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    check_launch()
    with plain_errors(ValueError, OSError):
        rewards = load_rewards(reasoner_args.reward_funcs, reasoner_args.reward_kwargs)
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    if PartialState().is_main_process:
        resolved = (data_args, model_args, teacher_args, reasoner_args)
        start_run(
            run_dir,
            {**{type(a).__name__: dataclasses.asdict(a) for a in resolved}, "GRPOConfig": training_args.to_dict()},
        )

    teachers: dict[str, Path | str] = {}
    start: Path | str | None = model_args.model_name_or_path
    if reasoner_args.sft_config:
        # Parsed for its trainer settings and its patience; all else is this run's. Where it runs is passed on, since
        # parsing trainer settings sets the processes up anew.
        path = str(sft_config_path(reasoner_args.sft_config, config))
        shared = ["--seed", str(training_args.seed), "--use_cpu", str(training_args.use_cpu)]
        shared += ["--ddp_backend", training_args.ddp_backend] if training_args.ddp_backend else []
        *_, sft_teacher, sft_args, _ = parse(
            (DataArguments, ModelConfig, TeacherArguments, SFTConfig), args=["--config", path, *shared]
        )
        patience = sft_teacher.early_stopping_patience
        sft_teacher = dataclasses.replace(teacher_args, early_stopping_patience=patience)
        warm_start = partial(train_sft, run_dir, task, model_args, sft_teacher)
        start = teachers["sft"] = warm_start(sft_args, "sft", reasoning=True)
        if reasoner_args.train_direct:
            sft_args.max_steps += training_args.max_steps  # as many updates as SFT and GRPO together
            teachers["direct"] = warm_start(sft_args, "direct", reasoning=False)
    if start is None:
        raise SystemExit("no teacher: set model_name_or_path, or sft_config for a warm start")
    teachers.setdefault("sft", start)
    teachers["grpo"] = train_grpo(
        run_dir, task, start, model_args, teacher_args, reasoner_args, training_args, rewards
    )
    # The others go home: waiting for the evaluation would end in a time-out.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
    if PartialState().is_main_process:
        summary = evaluate_run(
            run_dir,
            task,
            teachers,
            model_args,
            teacher_args,
            baselines=reasoner_args.baselines,
            seed=training_args.seed,
        )
        print(console_table(summary))
        print(f"report: {run_dir / 'report.html'}")


if __name__ == "__main__":
    main()
