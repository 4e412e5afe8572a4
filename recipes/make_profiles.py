"""Asks a strong LLM, or a teacher of one's own, what users are like, for the kind of reasoning `profile`.

    vllm serve Qwen/Qwen3-8B &
    accelerate launch recipes/make_profiles.py --model Qwen/Qwen3-8B --key_variable null --max_tokens_in_all 1000000
    accelerate launch recipes/sft_teacher.py --reasoning_kind profile \
        --kind_settings '{"table": "runs/toy-profiles/profiles.parquet"}' --output_dir runs/toy-profile

With `--teacher runs/mine` the teacher of that run writes them, as it was trained to by the rank that its reasoning
leads to, and no server is asked. Give the same `window` and `every` to both. Killed and started again, nothing that
arrived is asked again; where histories have grown, only what is new is asked.
"""

from collections.abc import Sequence
from pathlib import Path

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.llm.server import ServerError
from anyo_rl.reasoning.kinds.profile import FILE
from anyo_rl.reasoning.rationales.prompts import load_prompt
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import go_on_alone
from anyo_rl.run.settings import UsageError
from anyo_rl.serve.recommender import Recommender, Request
from anyo_rl.stages.begin import begin, plain_errors
from anyo_rl.stages.profiles import ProfileArguments, write_profiles, write_profiles_by
from anyo_rl.stages.server_arguments import ServerArguments

HERE = Path(__file__).parent


@plain_errors()
def main() -> None:
    """Begin; ask, write down; print."""
    args, data_args, server_args, _ = begin((ProfileArguments, DataArguments, ServerArguments))
    if args.teacher is not None:
        by_teacher(Path(args.teacher), args, data_args)
        return
    with plain_errors(ValueError):
        server = server_args.server()
    prompt = load_prompt(Path(args.prompt_path or HERE / "prompts" / "profile.yaml"), "blind")
    task = load_task(data_args)
    start_run(
        Path(args.output_dir), resolve(args, data_args, server_args, Prompt={"source": prompt.source}), task.report
    )
    if not go_on_alone():
        return
    with plain_errors(ServerError):
        counts = write_profiles(task, prompt, server, args)
    print(f"{counts.kept:,} of {counts.requests:,} profiles, {counts.cut:,} more less a line that was cut off")
    print(f"{counts.empty:,} answers were empty; {counts.left:,} are left, for the same command")
    print(f"profiles: {Path(args.output_dir) / FILE}")


def by_teacher(folder: Path, args: ProfileArguments, data_args: DataArguments) -> None:
    """Lets the teacher of a run write the profiles."""
    task = load_task(data_args)
    with Recommender.from_pretrained(folder, data_dir=data_args.data_dir) as teacher:
        if not teacher.reasons:
            raise UsageError(f"{folder} holds no teacher that reasons: expected a run of SFT, STaR, GRPO or PPO")
        if missing := set(task.interactions.items["item_id"]) - set(teacher.titles):
            raise UsageError(
                f"the teacher of {folder} does not know {len(missing)} items of these data, such as {min(missing)!r}: "
                f"give the data that it was trained on"
            )
        start_run(Path(args.output_dir), resolve(args, data_args), task.report)
        if not go_on_alone():
            return

        def write(histories: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
            return [found.reasons for found in teacher.answer([Request(tuple(one)) for one in histories], k=1)]

        counts = write_profiles_by(task, write, str(folder), args)
    print(f"{counts.kept:,} of {counts.requests:,} profiles; of the others the teacher wrote no reasoning")
    print(f"profiles: {Path(args.output_dir) / FILE}")


if __name__ == "__main__":
    main()
