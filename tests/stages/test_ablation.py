"""What a step adds is the gain with it less the gain without it, over the reasonings that have it once."""

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import PartialState

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.reasoning.kinds.typed import read_typed
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.run.files import write_table
from anyo_rl.sampling.paths import SampledPath, paths_table
from anyo_rl.stages.ablation import FOLDER, ablate
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens

NAMES = ("Profile", "Intention")
STEPS = [
    ["Profile: tea, mug", "Intention: lamp 2"],
    ["Intention: tea", "something else", "Profile: lamp"],
    ["Profile: tea"],
    ["Profile: tea", "profile: mug", "Intention: vase"],
    [],
    ["Intention:", "->"],
]


@pytest.fixture(scope="module")
def asked():
    """A teacher with weights drawn at large, so that a word of its reasoning matters, and six users."""
    PartialState(cpu=True)
    task = load_task(DataArguments(toy_users=40, toy_categories=4))
    tokenizer = train_tokenizer([*sample_texts(task), *("\n".join(steps) for steps in STEPS)], 400)
    tokens = Tokens.of(tokenizer)
    model = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=2, seed=0).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(6.0 if weights.ndim > 1 else 1.0)
    catalog = build_catalog(task.interactions.items, tokens)
    return task, Teacher(model, tokens, catalog), task.split("test")[: len(STEPS)]


def evaluation_of(asked, folder, steps=STEPS):
    task, teacher, test = asked
    ids = test["example_id"].to_list()
    paths = [SampledPath(id_, 0, "sft", steps=one, token_ids=[1], rank=1) for id_, one in zip(ids, steps, strict=True)]
    write_table(paths_table(paths), folder / "paths" / "sft.greedy.parquet")
    return Evaluation(folder, task, teacher.catalog.item_ids, test, 0)


def test_what_a_step_adds(asked, tmp_path):
    task, teacher, test = asked
    rows = make_rows(task, test, teacher.catalog, teacher.tokens)
    found = ablate(evaluation_of(asked, tmp_path), "sft", teacher, rows, NAMES)

    def gain(row, steps):
        context = teacher.tokens.context_ids(row.prompt)
        ids = [*context, *teacher.tokens.reasoning_ids(steps, context)]
        return float(ndcg(DistributionRanker(teacher.catalog, teacher.model).rank([ids], [row.target_id]).ranks_B)[0])

    for name, once in (("Profile", [0, 1, 2]), ("Intention", [0, 1, 3])):
        whole = [gain(rows[n], STEPS[n]) for n in once]
        fewer = [gain(rows[n], [s for m, s in enumerate(STEPS[n]) if m != read_typed(STEPS[n], NAMES).places[name]])
                 for n in once]  # fmt: skip
        assert found[name].with_it.mean == pytest.approx(np.mean(whole))
        assert found[name].without.mean == pytest.approx(np.mean(fewer))
        assert found[name].added.mean == pytest.approx(np.mean(whole) - np.mean(fewer))
        assert found[name].added.n == 3
    assert any(one.added.mean != 0 for one in found.values())


def test_a_teacher_that_takes_no_notice_adds_nothing(asked, tmp_path):
    task, teacher, test = asked
    rows = make_rows(task, test, teacher.catalog, teacher.tokens)
    deaf = make_tiny_teacher(teacher.tokens.tokenizer, hidden_size=16, n_layers=1, seed=0).eval()
    with torch.no_grad():
        for name, weights in deaf.named_parameters():
            if "self_attn.o_proj" in name:
                weights.zero_()  # no position reads another one: only the marker is known
    found = ablate(evaluation_of(asked, tmp_path), "sft", Teacher(deaf, teacher.tokens, teacher.catalog), rows, NAMES)
    assert all(one.added.mean == 0 for one in found.values())


def test_what_is_there_is_not_done_again(asked, tmp_path):
    task, teacher, test = asked
    rows = make_rows(task, test, teacher.catalog, teacher.tokens)
    first = ablate(evaluation_of(asked, tmp_path), "sft", teacher, rows, NAMES)
    file = tmp_path / FOLDER / "sft.json"
    before = file.stat().st_mtime_ns
    assert ablate(evaluation_of(asked, tmp_path), "sft", teacher, rows, NAMES) == first
    assert file.stat().st_mtime_ns == before
    ablate(evaluation_of(asked, tmp_path, [["Profile: vase"]] * 6), "sft", teacher, rows, NAMES)
    assert file.stat().st_mtime_ns != before


def test_steps_that_nobody_writes_have_no_number(asked, tmp_path):
    task, teacher, test = asked
    rows = make_rows(task, test, teacher.catalog, teacher.tokens)
    nothing = evaluation_of(asked, tmp_path, [[]] * len(STEPS))
    for _ in range(2):
        found = ablate(nothing, "sft", teacher, rows, NAMES)
        assert all(np.isnan(one.added.mean) and one.added.n == 0 for one in found.values())
    assert pl.read_parquet(nothing.paths("sft", "greedy")).height == len(STEPS)
