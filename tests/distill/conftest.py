"""A small log as a task, and its training histories."""

import numpy as np
import pytest

from anyo_rl.data.sequences import training_positions
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.stages.evidence import EvidenceArguments, rank_by_evidence
from tests.evidence.conftest import write_log

N_USERS, N_ITEMS = 23, 15


@pytest.fixture(scope="session")
def events():
    """User → items, each once: mostly the next but one."""
    generator = np.random.default_rng(0)
    found = {}
    for user in range(N_USERS):
        start, n = int(generator.integers(N_ITEMS)), int(generator.integers(4, 9))
        chain = [(start + 2 * step) % N_ITEMS for step in range(n)]
        at = int(generator.integers(n))
        chain[at] = next(item for item in generator.permutation(N_ITEMS).tolist() if item not in chain)
        found[f"u{user}"] = chain
    return found


@pytest.fixture
def task(events, tmp_path):
    """Their log, each user's last two items held out, what was seen left out of rankings."""
    return load_task(write_log(tmp_path / "data", events))


def index_of(task):
    return {item: place for place, item in enumerate(task.interactions.items["item_id"].to_list())}


@pytest.fixture
def histories(task):
    """All of them."""
    return training_positions(task, index_of(task))


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A toy world, and the evidence of it, with scores of training examples."""
    task = load_task(DataArguments(toy_users=60, toy_categories=4, mask_history=True))
    folder = tmp_path_factory.mktemp("evidence")
    small = {"n_candidates": 30, "n_folds": 3, "positions": [3], "most_rounds": 20, "leaves": 4}
    rank_by_evidence(task, EvidenceArguments(output_dir=str(folder), seeds=[0], training_scores=True, **small))
    return task, folder
