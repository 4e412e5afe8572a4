"""A small log whose users follow chains of items, and runs of the stage on it."""

import numpy as np
import pytest

from anyo_rl.data.task import DataArguments, load_task

N_ITEMS = 12


def write_log(folder, events):
    """A plain log: user → items, a minute each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{user},i{item},{60 * place}" for user, items in events.items() for place, item in enumerate(items)]
    (folder / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    n_items = 1 + max(item for items in events.values() for item in items)
    words = ["oak", "glass", "steel"]
    titles = [f"i{item},{words[item % 3]} thing {item // 3}" for item in range(max(n_items, N_ITEMS))]
    (folder / "items.csv").write_text("item_id,title\n" + "\n".join(titles) + "\n")
    return DataArguments(dataset=str(folder / "log.csv"), split="leave_one_out", mask_history=True)


@pytest.fixture
def chains():
    """User → items: most go on to the next item but one."""
    generator = np.random.default_rng(0)
    found = {}
    for user in range(40):
        items = [int(generator.integers(N_ITEMS))]
        while len(items) < 7:
            step = 2 if generator.random() < 0.7 else int(generator.integers(N_ITEMS))
            item = (items[-1] + step) % N_ITEMS
            items += [] if item in items else [item]
            if step == 2 and item in items[:-1]:
                items.append(next(other for other in range(N_ITEMS) if other not in items))
        found[f"u{user}"] = items[:7]
    return found


@pytest.fixture
def task(chains, tmp_path):
    """The chains as a task, what was seen left out."""
    return load_task(write_log(tmp_path / "data", chains))
