"""Asks a strong LLM what users are like, for the kind of reasoning `profile`.

    vllm serve Qwen/Qwen3-8B &
    accelerate launch recipes/make_profiles.py --model Qwen/Qwen3-8B --key_variable null --max_tokens_in_all 1000000
    accelerate launch recipes/sft_teacher.py --reasoning_kind profile \
        --kind_settings '{"table": "runs/toy-profiles/profiles.parquet"}' --output_dir runs/toy-profile

Give the same `window` and `every` to both. Killed and started again, nothing that arrived is asked again; where
histories have grown, only what is new is asked.
"""

from pathlib import Path

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.llm.server import ServerError
from anyo_rl.reasoning.kinds.profile import FILE
from anyo_rl.reasoning.rationales.prompts import load_prompt
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import go_on_alone
from anyo_rl.stages.begin import begin, plain_errors
from anyo_rl.stages.profiles import ProfileArguments, write_profiles
from anyo_rl.stages.server_arguments import ServerArguments

HERE = Path(__file__).parent


@plain_errors()
def main() -> None:
    """Begin; ask, write down; print."""
    args, data_args, server_args, _ = begin(
        (ProfileArguments, DataArguments, ServerArguments),
        on_cpu=True,  # nothing here is computed on a device
    )
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


if __name__ == "__main__":
    main()
