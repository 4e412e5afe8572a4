"""A cache is whole or unfinished, of one teacher and one data set, and read row by row."""

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.data.sequences import sequences_by_user, training_positions
from anyo_rl.data.task import load_task
from anyo_rl.distill import cache as cache_module
from anyo_rl.distill.cache import Card, Labels, Pieces, TeacherCache, data_of, n_shards, write_cache
from anyo_rl.run import shards as shards_module
from anyo_rl.run.settings import UsageError
from anyo_rl.run.shards import JobError
from tests.distill.conftest import index_of
from tests.evidence.conftest import write_log


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of ten histories."""
    monkeypatch.setattr(cache_module, "ROWS_AT_ONCE", 10)


def card_of(task, **changes) -> Card:
    return replace(Card("scripted", 3, "abc", data_of(task), 0.5, state_dim=2, text_bytes=8), **changes)


def scripted(histories: pl.DataFrame) -> Labels:
    """Answers that say whose they are."""
    user_R, position_R = (histories[name].to_numpy() for name in ("user", "position"))
    items_R_K = np.stack([user_R % 7, position_R + 7, np.full(len(user_R), -1)], axis=1).astype(np.int32)
    log_probs_R_K = np.where(items_R_K < 0, -np.inf, -0.1 * position_R[:, None]).astype(np.float32)
    states_R_D = np.stack([user_R, position_R], axis=1).astype(np.float16)
    texts = [f"u{u} at {p}" for u, p in zip(user_R, position_R, strict=True)]
    return Labels(items_R_K, log_probs_R_K, position_R, states_R_D, texts)


def test_a_cache_holds_each_history_once(task, histories, tmp_path, events):
    write_cache(tmp_path / "cache", card_of(task), histories, scripted)
    found = TeacherCache.open(tmp_path / "cache", task)
    assert len(found) == len(histories) == sum(len(items) - 3 for items in events.values())
    assert found.card == card_of(task)
    assert (found.user_B.dtype, found.position_B.dtype, found.rank_B.dtype) == (np.int32,) * 3
    expected = scripted(histories)
    assert found.top_items_B_K.shape == (len(histories), 3)
    assert np.array_equal(found.top_items_B_K[:], expected.items_R_K)
    assert np.array_equal(found.top_log_probs_B_K[:], expected.log_probs_R_K)
    assert np.array_equal(found.states_B_D[:], expected.states_R_D)
    assert [found.top_items_B_K.dtype, found.top_log_probs_B_K.dtype, found.states_B_D.dtype] == [
        np.int32,
        np.float32,
        np.float16,
    ]
    assert found.reasoning_vectors_B_D is None
    table = found.table().collect()
    assert table["reasoning"].to_list() == expected.reasonings
    assert table["example_id"].to_list() == histories["example_id"].to_list()
    assert not any(part.flags.writeable for part in found.top_items_B_K.parts)


def test_rows_are_those_of_the_training_sequences(task, tmp_path, histories):
    write_cache(tmp_path / "cache", card_of(task), histories, scripted)
    found = TeacherCache.open(tmp_path / "cache", task)
    index = index_of(task)
    sequences = list(sequences_by_user(task, index).values())
    asked = dict(task.split("train").select("example_id", "target_id").iter_rows())
    for user, position, example in zip(found.user_B, found.position_B, histories["example_id"], strict=True):
        assert sequences[user][position] == index[asked[example]]
    last = training_positions(task, index, last=2)
    assert last.group_by("user").len()["len"].max() == 2
    assert set(last["example_id"]) == {
        example
        for _, of_user in histories.group_by("user")
        for example in of_user.sort("position")["example_id"].to_list()[-2:]
    }


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_pieces_are_as_one_array(lengths, data):
    whole = np.arange(3 * sum(lengths)).reshape(-1, 3)
    pieces = Pieces(np.split(whole, np.cumsum(lengths)[:-1]))
    assert pieces.shape == whole.shape
    rows = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)) if len(whole) else []
    assert np.array_equal(pieces[rows], whole[np.array(rows, dtype=int)])
    assert np.array_equal(pieces[1:9:2], whole[1:9:2])
    if len(whole):
        assert np.array_equal(pieces[len(whole) - 1], whole[-1])
    for wrong in ([-1], [len(whole)]):
        with pytest.raises(IndexError, match="expected row numbers"):
            pieces[wrong]


class Killed(BaseException):
    """As a kill, which nothing catches."""


def test_killed_at_any_border_nothing_is_lost_or_made_twice(task, histories, tmp_path, monkeypatch):
    few = histories[:30]
    write_cache(tmp_path / "calm", card_of(task), few, scripted)
    expected = {file.name: file.read_bytes() for file in (tmp_path / "calm").iterdir()}
    for number in range(4 * 3 + 1):  # before each file of each shard, three arrays and then the rows, and the card
        left, made, folder = [number], [], tmp_path / f"killed-{number}"

        def counted(action, left=left):
            def until_killed(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return action(*args, **kwargs)

            return until_killed

        def told(rows, made=made):
            made.append(rows["example_id"][0])
            return scripted(rows)

        with monkeypatch.context() as patched:
            patched.setattr(np, "save", counted(np.save))
            patched.setattr(shards_module, "write_table", counted(shards_module.write_table))
            patched.setattr(cache_module, "write_first", counted(cache_module.write_first))
            with pytest.raises(Killed):
                write_cache(folder, card_of(task), few, told)
        n_done = len(list(folder.glob("shard-*.parquet")))
        assert n_done == number // 4
        with pytest.raises(UsageError, match=rf"not finished, {3 - n_done} of 3 shards lack"):
            TeacherCache.open(folder, task)
        made.clear()
        write_cache(folder, card_of(task), few, told)
        assert made == few["example_id"][10 * n_done :: 10].to_list()
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == expected


def test_what_a_kill_left_half_written_goes(task, histories, tmp_path):
    """A kill leaves no time to tidy up."""
    write_cache(tmp_path / "calm", card_of(task), histories, scripted)
    write_cache(tmp_path / "killed", card_of(task), histories, scripted)
    (tmp_path / "killed" / "shard-00002-of-00006.parquet").unlink()
    (tmp_path / "killed" / ".shard-00002-of-00006.states.npy.0a1b2c3d.partial").write_bytes(b"half")
    (tmp_path / "killed" / "shard-00002-of-00006.states.npy").write_bytes(b"of an earlier kill, whole or not")
    write_cache(tmp_path / "killed", card_of(task), histories, scripted)
    calm, killed = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("calm", "killed"))
    assert killed == calm


def test_another_teacher_other_settings_or_other_histories_are_refused(task, histories, tmp_path):
    write_cache(tmp_path, card_of(task), histories, scripted)
    before = (tmp_path / "card.json").read_bytes()
    for card, rows, message in (
        (card_of(task, weights="xyz"), histories, "weights='abc', now 'xyz'"),
        (card_of(task, temperature=1.0), histories, "temperature=0.5, now 1.0"),
        (card_of(task, source="evidence"), histories, "source='scripted', now 'evidence'"),
        (card_of(task, data={"events": "other"}), histories, "is of a job with data="),
        (card_of(task), histories[1:], "with other examples"),
    ):
        with pytest.raises(JobError, match=re.escape(message)):
            write_cache(tmp_path, card, rows, scripted)
    assert (tmp_path / "card.json").read_bytes() == before


def test_a_cache_of_other_data_is_not_opened(task, histories, tmp_path, events):
    write_cache(tmp_path / "cache", card_of(task), histories, scripted)
    changed = load_task(write_log(tmp_path / "other", events | {"u0": [*events["u0"][:-1], events["u1"][0]]}))
    with pytest.raises(UsageError, match="was made of other events, targets: make it of this data"):
        TeacherCache.open(tmp_path / "cache", changed)
    unmasked = load_task(replace(task.args, mask_history=False))
    with pytest.raises(UsageError, match="was made of other mask_history"):
        TeacherCache.open(tmp_path / "cache", unmasked)
    shorter = load_task(replace(task.args, max_history=2))
    assert len(TeacherCache.open(tmp_path / "cache", shorter)) == len(histories)  # scores do not read prompts
    write_cache(tmp_path / "prompted", card_of(task, data=data_of(task, shown=True)), histories, scripted)
    with pytest.raises(UsageError, match="was made of other histories"):
        TeacherCache.open(tmp_path / "prompted", shorter)


def test_what_is_missing_or_damaged_is_said(task, histories, tmp_path):
    with pytest.raises(UsageError, match=r"found no teacher cache in .*: run recipes/cache_teacher.py"):
        TeacherCache.open(tmp_path, task)
    write_cache(tmp_path, card_of(task), histories, scripted)
    file = tmp_path / "shard-00003-of-00006.states.npy"
    whole = file.read_bytes()
    for content in (None, whole[:20], whole[:-2]):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UsageError, match=r"shard-00003-of-00006.states.npy is damaged .* makes them again"):
            TeacherCache.open(tmp_path, task)
        file.write_bytes(whole)
    (tmp_path / "card.json").unlink()
    with pytest.raises(UsageError, match="not finished, 0 of 6 shards lack"):
        TeacherCache.open(tmp_path, task)
    write_cache(tmp_path, card_of(task), histories, lambda rows: pytest.fail("made again"))
    (tmp_path / "card.json").write_text(json.dumps({"source": "x"}))
    with pytest.raises(UsageError, match=r"card.json is damaged"):
        TeacherCache.open(tmp_path, task)


def test_wrong_answers_are_refused(task, histories, tmp_path):
    with pytest.raises(ValueError, match=r"'top_items': \(10, 2\).*expected .*'top_items': \(10, 3\)"):
        write_cache(
            tmp_path,
            card_of(task),
            histories,
            lambda rows: replace(scripted(rows), items_R_K=scripted(rows).items_R_K[:, :2]),
        )
    big = lambda rows: replace(scripted(rows), states_R_D=np.full((len(rows), 2), np.inf, dtype=np.float16))  # noqa: E731
    with pytest.raises(UsageError, match="states have numbers that float16 does not hold"):
        write_cache(tmp_path, card_of(task), histories, big)


def test_its_size_is_told_beforehand_and_is_right(task, histories, tmp_path):
    card = card_of(task, text_bytes=0)
    write_cache(tmp_path, card, histories, scripted)
    rows = len(histories)
    sizes = card.bytes_of(rows)
    assert sizes == {"top_items": 12 * rows, "top_log_probs": 12 * rows, "states": 4 * rows, "rows": 12 * rows}
    for name in ("top_items", "top_log_probs", "states"):
        arrays = [np.load(file) for file in tmp_path.glob(f"*.{name}.npy")]
        assert sum(array.nbytes for array in arrays) == sizes[name]
    assert Card("x", 100, None, {}).told(100_000).startswith("100,000 histories, 100 items each, of x: 81.2 MB (")
    assert n_shards(100) == 10
    assert n_shards(0) == 1
    assert n_shards(10**7) == 200
