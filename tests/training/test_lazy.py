"""Rows that are made when they are drawn are those that used to be kept, in the same order."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import Rows, make_rows, sample_texts
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.lazy import LENGTH, as_stored, joined, lazy_dataset
from anyo_rl.training.rewards.setup import prepare_rewards
from anyo_rl.training.sft import sft_dataset
from reward.rank import RankReward


@pytest.fixture(scope="module")
def masked():
    """A masked task, its catalog and tokens, and its training rows in both forms."""
    task = load_task(DataArguments(toy_users=30, toy_categories=4, mask_history=True, rationale_share=0.6))
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 400))
    catalog = build_catalog(task.interactions.items, tokens)
    kept = make_rows(task, task.split("train"), catalog, tokens)
    assert any(len(row.excluded) > 8 for row in kept)
    return task, catalog, tokens, kept, Rows(task, task.places("train"), catalog, tokens)


def kept_lessons(rows, catalog, tokens, rationales, early_share, seed):
    """SFT's dataset as it was when all of it was kept."""
    rng, encoded = np.random.default_rng(seed), []

    def add(row, steps, labelled):
        context, item = tokens.context_ids(row.prompt), catalog.index[row.target_id]
        reasoning, path = tokens.reasoning_ids(map(tokens.safe_text, steps)), list(catalog.paths[item])
        before = [*[-100] * len(context), *(reasoning if labelled else [-100] * len(reasoning))]
        ids, labels = [*context, *reasoning, *path], [*before, *[-100] * len(path)]
        known = {"item": item, "path": path, "item_start": len(before), "excluded": catalog.known(row.excluded)}
        encoded.append({"input_ids": ids, "labels": labels, **known})

    for row in rows:
        for steps in [()] if rationales is None else rationales.get(row.example_id, []):
            add(row, steps, True)
            if steps and rng.random() < early_share:
                add(row, steps[: int(rng.integers(len(steps)))], False)
    return Dataset.from_list(encoded)


def test_rows_are_those_that_were_kept(masked):
    _, catalog, _, kept, rows = masked
    assert list(rows) == kept
    assert list(rows[1::3]) == kept[1::3]
    assert rows[-1] == kept[-1]
    assert rows.ids.to_list() == [row.example_id for row in kept]
    some = {row.example_id for row in kept[::2]}
    assert list(rows.of(some)) == kept[::2]
    assert list(rows.of(some, wanted=False)) == kept[1::2]
    assert len(rows.of([])) == 0
    (hinted,) = rows[:1].hinted()
    assert catalog.titles[catalog.index[hinted.target_id]] in hinted.sampled_prompt
    assert hinted.prompt == kept[0].prompt


def test_rewards_see_the_columns_that_were_kept(masked):
    task, catalog, _, kept, rows = masked
    of_rows = [row.columns() for row in kept]
    found = prepare_rewards([RankReward()], rows, task, catalog, seed=0)
    assert list(found) == list(Dataset.from_list(of_rows)) == of_rows
    assert found.select([5, 2])[:] == Dataset.from_list(of_rows).select([5, 2])[:]
    weighed = prepare_rewards([RankReward(propensity_power=1.0)], rows, task, catalog, seed=0)
    assert weighed[3].keys() - of_rows[3].keys() == {"propensity"}


def test_lessons_are_those_that_were_kept(masked):
    task, catalog, tokens, kept, rows = masked
    for rationales, share in ((None, 0.0), (task.rationales, 0.5)):
        found = sft_dataset(rows, catalog, tokens, rationales, early_share=share, seed=3)
        before = kept_lessons(kept, catalog, tokens, rationales, share, 3)
        assert list(found) == list(before)
    lengths = [len(ids) for ids in before["input_ids"]]
    assert as_stored(found)[LENGTH][:] == lengths
    # Batches of rows of one length are those that transformers makes of the token ids.
    orders = [
        list(LengthGroupedSampler(4, dataset=before, lengths=known, generator=torch.Generator().manual_seed(0)))
        for known in (None, as_stored(found)[LENGTH])
    ]
    assert orders[0] == orders[1]
    both = joined(found, sft_dataset(rows[:3].hinted(), catalog, tokens, None))
    assert len(both) == len(found) + 3
    assert both[1] == found[1]
    hinted = [replace(row, prompt=row.sampled_prompt) for row in rows[:3].hinted()]
    assert list(both)[len(found) :] == list(kept_lessons(hinted, catalog, tokens, None, 0.0, 0))


def test_batches_are_the_same_with_workers_and_rows_of_a_batch_are_apart(masked):
    task, catalog, _, kept, rows = masked
    dataset = prepare_rewards([RankReward()], rows, task, catalog, seed=0)
    order = [4, 4, 0, 7, 7, 2]
    for n_workers in (0, 2):
        loader = DataLoader(dataset, batch_size=3, sampler=order, collate_fn=list, num_workers=n_workers)
        first, second = loader
        assert first + second == [kept[number].columns() for number in order]
    first[0]["history"].append("mine")
    assert first[1] == kept[4].columns()


def test_nothing_of_the_source_is_copied_or_hashed():
    class Numbers:
        def __len__(self):
            return 3

        def __getitem__(self, row):
            return {"n": row}

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def __reduce__(self):
            raise AssertionError("pickled")

    dataset = lazy_dataset(Numbers(), [1, 1, 2])
    assert dataset.select([2, 0])[:] == {"n": [2, 0]}
    assert dataset.remove_columns(LENGTH).with_format(None).column_names == ["row"]
    assert [row["n"] for row in dataset.shuffle(seed=0).sort("row")] == [0, 1, 2]


TOGETHER = """
import sys
import polars as pl
from accelerate import PartialState
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.run.shared import made_once
state = PartialState(cpu=True)
args = DataArguments(toy_users=30, toy_categories=4, mask_history=True)
calls = []
task = load_task(args, lambda make: made_once(lambda: calls.append(1) or make()))
alone = load_task(args)
assert len(calls) == state.is_local_main_process
assert task.examples.equals(alone.examples) and task.fingerprint == alone.fingerprint and task.report == alone.report
def fails():
    raise ValueError("no such log")
try:
    made_once(fails)
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_one_of_two_processes_makes_the_tables_and_both_have_them(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "TMPDIR": str(tmp_path)}
    world |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    started = [
        subprocess.Popen([sys.executable, "-c", TOGETHER], env=os.environ | world | rank, stdout=-1, text=True)
        for rank in ranks
    ]
    try:
        told = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert told == ["ValueError no such log\n", "UsageError no such log\n"]
    assert list(tmp_path.iterdir()) == []
