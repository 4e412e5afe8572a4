"""Trains a teacher's reasoning by GRPO on the rank of the item that the user really chose.

    accelerate launch recipes/grpo_teacher.py
    accelerate launch recipes/grpo_teacher.py --config recipes/configs/ml-100k/grpo_teacher.yaml
    accelerate launch recipes/grpo_teacher.py --output_dir runs/mine --reward_funcs my_reward.py:my_reward ndcg

With no arguments it runs on the embedded toy world: a warm start by SFT on the rationales of a few users, GRPO on all
users, the same teacher without reasoning, baselines, and a report. Run again, it goes on from where it was; with other
arguments it wants another --output_dir.
"""

import copy
import logging
from functools import partial
from pathlib import Path

from accelerate import PartialState
from trl import GRPOConfig, ModelConfig, SFTConfig

from anyo_rl.config import ReasonerArguments, TeacherArguments, parse, parse_warm_start, plain_errors
from anyo_rl.evaluation.table import console_table
from anyo_rl.launch import check_launch, go_on_alone
from anyo_rl.run_folder import WARM_START, resolve, start_run
from anyo_rl.stages import direct_max_steps, evaluate_run, train_grpo, train_sft
from anyo_rl.task import DataArguments, load_task
from anyo_rl.training.callbacks import check_saves
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, build, train, evaluate, save."""
    data_args, model_args, teacher_args, reasoner_args, training_args, config = parse(
        (DataArguments, ModelConfig, TeacherArguments, ReasonerArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "grpo_teacher.yaml",
        defaults={"num_generations_eval": 1},  # validation does not sample by groups
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    check_launch()
    with plain_errors(ValueError, OSError):
        rewards = load_rewards(reasoner_args.reward_funcs, reasoner_args.reward_kwargs)
        check_saves(training_args)
    arguments = resolve(data_args, model_args, teacher_args, reasoner_args, training_args)
    sft_args: SFTConfig | None = None
    if reasoner_args.sft_config:
        sft_args, sft_teacher = parse_warm_start(reasoner_args.sft_config, config, training_args, teacher_args)
        patience = {"early_stopping_patience": sft_teacher.early_stopping_patience}
        arguments |= resolve(**{WARM_START: sft_args.to_dict() | patience})
        with plain_errors(ValueError):
            check_saves(sft_args)
            n_direct_steps = direct_max_steps(sft_args, training_args) if reasoner_args.train_direct else 0
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    start_run(run_dir, arguments, task.report)

    teachers: dict[str, Path | str] = {}
    start: Path | str | None = model_args.model_name_or_path
    if sft_args is not None:
        warm_start = partial(
            train_sft, run_dir, task, model_args, sft_teacher, chat_template_kwargs=training_args.chat_template_kwargs
        )
        start = teachers["sft"] = warm_start(sft_args, "sft", reasoning=True)
        if reasoner_args.train_direct:
            direct_args = copy.copy(sft_args)
            direct_args.max_steps = n_direct_steps
            teachers["direct"] = warm_start(direct_args, "direct", reasoning=False)
    if start is None:
        raise SystemExit("no teacher: set model_name_or_path, or sft_config for a warm start")
    teachers.setdefault("sft", start)
    teachers["grpo"] = train_grpo(
        run_dir, task, start, model_args, teacher_args, reasoner_args, training_args, rewards
    )
    if go_on_alone():
        summary = evaluate_run(
            run_dir,
            task,
            teachers,
            model_args,
            teacher_args,
            baselines=reasoner_args.baselines,
            seed=training_args.seed,
            chat_template_kwargs=training_args.chat_template_kwargs,
        )
        print(console_table(summary))
        print(f"report: {run_dir / 'report.html'}")


if __name__ == "__main__":
    main()
