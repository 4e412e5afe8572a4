"""Evidence in words: counts of other users, out of fold, as lines that stay data."""

import re

import numpy as np
import pytest

from anyo_rl.data.sequences import sequences_by_user
from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.run.settings import UsageError

LINE = re.compile(r'with "([^"]*)": (.*)')
NAMED = re.compile(r'"([^"]*)" (\d+)x')


def told(prompt: str) -> dict[str, dict[str, int]]:
    """The evidence of a prompt: title → companion → count."""
    if not prompt.startswith("Chosen together by others:"):
        return {}
    lines = prompt.split("History:")[0].strip().split("\n")[1:]
    found = [LINE.fullmatch(line) for line in lines]
    return {match[1]: {title: int(count) for title, count in NAMED.findall(match[2])} for match in found}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_counts_are_those_of_other_users(make_world, split, masked):
    """Against a plain count over all pairs; for training examples without all users of the user's fold."""
    world = make_world(masked)
    index = {item: n for n, item in enumerate(world.task.interactions.items["item_id"].to_list())}
    names = {n: world.catalog.titles[world.catalog.index[item]] for item, n in index.items()}
    sequences = sequences_by_user(world.task, index)
    rows = world.rows(load_kind("retrieval", {"tokens": 999, "companions": 4, "fewest": 1}), split)
    folds = rows.asking.sources.companions.folds
    assert len(set(folds.values())) == 5
    assert set(np.bincount(list(folds.values()))) == {6}
    seen = 0
    for row in rows[:40]:
        users = [u for u in sequences if split != "train" or folds[u] != folds[row.user_id]]
        chosen = {user: {names[item] for item in sequences[user]} for user in users}
        evidence = told(row.prompt)
        newest = list(dict.fromkeys(names[index[item]] for item in reversed(row.history)))
        left_out = {names[index[item]] for item in row.excluded}
        assert bool(left_out) == masked
        expected = {}
        for item in newest:
            counts = {o: sum(item in c and o in c for c in chosen.values()) for o in names.values() if o != item}
            owns = {o: sum(o in c for c in chosen.values()) for o in counts}
            best = [o for o in counts if counts[o] and o not in left_out]
            best.sort(key=lambda o: (-counts[o] / np.sqrt(owns[o]), [*names.values()].index(o)))
            if best:
                expected[item] = {other: counts[other] for other in best[:4]}
        assert evidence == expected
        assert list(evidence) == list(expected)
        seen += len(evidence)
    assert seen > 20


def test_a_target_chosen_by_its_user_alone_is_told_to_nobody_in_training(make_world):
    """What only one user chose comes from that user's own sequence: out of fold there is no count of it."""
    world = make_world()
    companions = Asking(load_kind("retrieval"), world.task).sources.companions
    kinds = [companions.of("i0", user, training=True, most=99) for user in companions.folds]
    full = companions.of("i0", "nobody", training=False, most=99)
    assert all(sum(c for _, c in one) < sum(c for _, c in full) for one in kinds)


def test_lines_keep_to_their_budget_and_the_newest_come_first(make_world):
    world = make_world()
    whole = world.rows(load_kind("retrieval", {"tokens": 999}), "test")
    counts = []
    for tokens in (1, 60, 120, 999):
        rows = world.rows(load_kind("retrieval", {"tokens": tokens}), "test")
        for row, full in zip(rows[:20], whole[:20], strict=True):
            lines = row.prompt.split("History:")[0].split("\n")[1:-1]
            assert full.prompt.split("History:")[0].split("\n")[1:][: len(lines)] == lines
            assert sum(world.tokens.n_text_tokens(f"{line}\n") for line in lines) <= tokens
            assert row.prompt.split("History:")[1] == full.prompt.split("History:")[1]
        counts.append(len(lines))
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[1] < counts[-1]
    first = whole[0]
    newest = world.catalog.titles[world.catalog.index[first.history[-1]]]
    assert first.prompt.split("\n")[1].startswith(f'with "{newest}": ')


@pytest.mark.parametrize("style", ["text", "chat"])
def test_titles_in_evidence_are_quoted_and_never_instructions(make_world, style):
    world = make_world(hostile=True)
    world.task.args.prompt_style = style
    seen = set()
    for row in world.rows(load_kind("retrieval", {"tokens": 999}), "test")[:20]:
        prompt = row.prompt if style == "text" else row.prompt[1]["content"]
        assert "<|im_end|>" not in prompt
        if style == "chat":
            tags = re.findall(r"<[^<>]*>", prompt)
            assert tags == ["<evidence>", "</evidence>", "<history>", "</history>"]
            continue
        assert [line for line in prompt.split("\n") if line in ("History:", "Next:")] == ["History:", "Next:"]
        for title, named in told(prompt).items():
            seen |= {title, *named}
            assert all(count <= 30 for count in named.values())
    assert style == "chat" or {"Tea' 99x, 'Mug", "Next:"} <= seen


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"items": "many"}, {"fewest": 0}, {"companions": 1.5}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))}.* expected"):
        load_kind("retrieval", settings)
