"""Asks a strong LLM why users chose what they chose, and keeps the answers that can train a teacher to reason.

    vllm serve Qwen/Qwen3-8B &
    accelerate launch recipes/make_rationales.py --model Qwen/Qwen3-8B --max_examples 200
    accelerate launch recipes/sft_teacher.py --rationales_path runs/toy-rationales \
        --max_reasoning_tokens 160 --output_dir runs/toy-llm

The server is any OpenAI-compatible one, its key in the environment. Killed and started again, nothing that arrived is
asked again; more samples, more examples, other filters and a larger budget go on in the same folder.
"""

from dataclasses import dataclass, field
from pathlib import Path

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.llm.server import ServerError
from anyo_rl.reasoning.rationales.filters import FilterArguments
from anyo_rl.reasoning.rationales.prompts import Kind, load_prompt
from anyo_rl.reasoning.rationales.questions import draw_examples, make_questions
from anyo_rl.reasoning.rationales.titles import Titles
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import go_on_alone
from anyo_rl.run.settings import Bounds
from anyo_rl.stages.begin import begin, plain_errors
from anyo_rl.stages.rationales import REPORT, generate, report_table
from anyo_rl.stages.server_arguments import ServerArguments

HERE = Path(__file__).parent


@dataclass
class RationaleArguments:
    """Settings of this recipe alone."""

    output_dir: str = field(default="runs/toy-rationales", metadata={"help": "The run folder.", "free": True})
    kind: Kind = field(
        default="post_hoc",
        metadata={"help": "post_hoc shows the item chosen next and asks why; blind does not show it."},
    )
    prompt_path: str | None = field(
        default=None, metadata={"help": "Prompt file; recipes/prompts/<kind>.yaml if unset."}
    )
    max_examples: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(1),
            "help": "Most training examples, drawn by split_seed; all if unset.",
            "free": True,
        },
    )
    n_samples: int = field(
        default=1, metadata={"bounds": Bounds(1, 10_000), "help": "Samples of each example.", "free": True}
    )
    n_candidates: int = field(
        default=0,
        metadata={"bounds": Bounds(0, 10_000), "help": "Titles in a blind prompt, the target among them; 0: no list."},
    )


@plain_errors()
def main() -> None:
    """Begin; ask, filter, write down; print."""
    args, data_args, filter_args, server_args, _ = begin(
        (RationaleArguments, DataArguments, FilterArguments, ServerArguments),
        default_config=HERE / "configs" / "toy" / "make_rationales.yaml",
        on_cpu=True,  # nothing here is computed on a device
    )
    if data_args.rationales_path is not None:
        raise DataError("rationales_path is what this recipe makes: leave it out")
    with plain_errors(ValueError):
        server = server_args.server()
    path = Path(args.prompt_path) if args.prompt_path else HERE / "prompts" / f"{args.kind}.yaml"
    prompt = load_prompt(path, args.kind, with_candidates=args.n_candidates > 0)
    task = load_task(data_args)
    titles = Titles(task.interactions.items)
    examples = draw_examples(task.split("train"), args.max_examples, data_args.split_seed)
    questions = make_questions(examples, titles, prompt, n_candidates=args.n_candidates, seed=data_args.split_seed)
    run_dir = Path(args.output_dir)
    # With another prompt every answer would be paid for anew. With other data each answer still belongs to its prompt.
    asked = {"source": prompt.source}
    start_run(run_dir, resolve(args, data_args, filter_args, server_args, Prompt=asked), task.report)
    if not go_on_alone():
        return
    with plain_errors(ServerError):
        report = generate(questions, args.n_samples, server, titles, filter_args, run_dir, data_args.prompt_style)
    print(report_table(report))
    if report.stopped == "budget":
        print("the budget ended: the same command with a larger one (--max_tokens_in_all, --max_money) goes on")
    elif report.counts["failed"]:
        print(f"{report.counts['failed']} requests failed: the same command asks them again")
    print(f"report: {run_dir / REPORT}\nto train on them: --rationales_path {run_dir}")


if __name__ == "__main__":
    main()
