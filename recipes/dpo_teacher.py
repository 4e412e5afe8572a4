"""Trains a teacher's reasoning by DPO on its own sampled paths: the best of an example against the worst.

    accelerate launch recipes/dpo_teacher.py --model_name_or_path runs/toy/sft/teacher --paths runs/toy-paths

The paths are those of a sampling job (a folder of shards) or a parquet file of the paths table, several of each
training example, sampled from the teacher that is named. It ends with both teachers' evaluation on the test users, as
the stages `sft` (the start) and `dpo`; `--baselines true` adds popularity, item-kNN and SASRec.
"""

from pathlib import Path

from trl import DPOConfig, ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.dpo import PairArguments, check_start, train_dpo
from anyo_rl.stages.evaluate import evaluate_run, show

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; pairs and DPO; evaluate, print."""
    data_args, model_args, teacher_args, pair_args, training_args, _ = begin(
        (DataArguments, ModelConfig, TeacherArguments, PairArguments, DPOConfig),
        default_config=CONFIGS / "toy" / "dpo_teacher.yaml",
    )
    start = check_start(model_args, pair_args.paths)
    job = start_job(
        *(data_args, model_args, teacher_args, training_args, pair_args),
        chat_template_kwargs=pair_args.chat_template_kwargs,
    )

    teacher = train_dpo(job, start, pair_args, training_args)
    show(job, evaluate_run(job, {"sft": start, "dpo": teacher}, baselines=pair_args.baselines), teacher)


if __name__ == "__main__":
    main()
