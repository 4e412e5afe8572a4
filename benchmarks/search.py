"""Searches of many users together against one user at a time: seconds, and whether both find the same.

python benchmarks/search.py
python benchmarks/search.py --teacher runs/toy/sft/teacher --users 64 --n 8 --search step_beam tree mcts

Without a teacher a tiny untrained one is asked, whose head leans towards line breaks and the marker, so that it writes
steps. `ours` is seconds a user together, `peer` alone; `agree` says that trees and items are the very same.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from report import report
from transformers import PreTrainedModel
from trl import ModelConfig

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.search.answers import Recommendation, answer
from anyo_rl.search.how import SEARCHES, How
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.teacher.tokens import Tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder of a teacher of the toy world")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max_reasoning_tokens", type=int, default=48)
    parser.add_argument("--search", nargs="+", default=["mixture", "step_beam", "tree", "mcts"], choices=SEARCHES)
    parser.add_argument("--toy_users", type=int, default=DataArguments.toy_users)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    task = load_task(DataArguments(toy_users=args.toy_users))
    with tempfile.TemporaryDirectory() as folder:
        teacher_args = TeacherArguments(max_reasoning_tokens=args.max_reasoning_tokens)
        job = Job(Path(folder), task, ModelConfig(dtype="float32"), teacher_args)
        if args.teacher:
            with job.opened(args.teacher) as teacher:
                measure(job, teacher, args)
        else:
            teacher = job.opening.load(None)
            lean(teacher.model.eval(), teacher.tokens)
            measure(job, teacher, args)


def lean(model: PreTrainedModel, tokens: Tokens) -> None:
    """Makes an untrained teacher write lines of about ten tokens, and a marker after a few of them."""
    (line_break,) = tokens.tokenizer.encode("\n", add_special_tokens=False)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    with torch.no_grad():
        head.bias.zero_()
        head.bias[line_break], head.bias[tokens.marker_id] = 4.2, 3.0
    model.lm_head = head


def measure(job: Job, teacher: Teacher, args: argparse.Namespace) -> None:
    """Times both, and reports."""
    rows = list(job.rows("test", teacher, args.users))
    ranker = LikelihoodRanker(teacher.catalog, teacher.model)
    sampler = job.sampler(teacher.model, teacher.tokens)
    asked = job.how("mixture", seed=0).sampling
    table, notes = [], [f"{torch.get_num_threads()} threads, {len(rows)} users, n {args.n}"]
    for search in args.search:
        how = How(
            search, type(asked)(n=args.n, max_new_tokens=asked.max_new_tokens), keep_found=True, keep_paths=False
        )

        def ask(some: list, how: How = how) -> list[Recommendation]:
            return answer(some, ranker, sampler, teacher.tokens, how).found_U or []

        ask(rows[:1])  # whatever is set up at the first call
        began = time.perf_counter()
        together = ask(rows)
        ours = (time.perf_counter() - began) / len(rows)
        began = time.perf_counter()
        alone = [found for row in rows for found in ask([row])]
        peer = (time.perf_counter() - began) / len(rows)
        same = [_found(a) == _found(b) for a, b in zip(together, alone, strict=True)]
        notes.append(f"{search}: {sum(len(one.tree.nodes) for one in together) / len(rows):.1f} nodes of a tree")
        row = {"name": f"{search}, s a user", "ours": round(ours, 4), "peer": round(peer, 4)}
        table.append(row | {"ratio": round(peer / ours, 2), "agree": sum(same) / len(same)})
    report(table, args.json, notes)


def _found(one: Recommendation) -> tuple[object, ...]:
    nodes = tuple((node.parent, node.token_ids, node.name, node.visits) for node in one.tree.nodes)
    return nodes, tuple(one.item_ids_K), one.ending.leaves


if __name__ == "__main__":
    main()
