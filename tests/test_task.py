import numpy as np
import polars as pl
import pytest

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.schema import DataError
from anyo_rl.data.toy import parse_intent
from anyo_rl.task import DataArguments, load_task


@pytest.fixture(scope="module")
def toy():
    return load_task(DataArguments(toy_users=90))


@pytest.fixture
def log(tmp_path):
    """A plain log of 12 users on 6 items with a brand each."""
    rng = np.random.default_rng(0)
    rows = [f"u{u},m{i},{t}" for u in range(12) for t, i in enumerate(rng.permutation(6))]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    items = [f"m{i},Mug {i},brand{i % 2}" for i in range(6)]
    (tmp_path / "items.csv").write_text("item_id,title,brand\n" + "\n".join(items) + "\n")
    return {"dataset": str(tmp_path / "log.csv"), "items_path": str(tmp_path / "items.csv"), "min_history": 2}


def test_a_split_with_a_limit_is_the_same_draw_each_time(toy):
    train = toy.split("train")
    assert set(train["split"]) == {"train"}
    assert toy.split("train", len(train)).equals(toy.split("train", 10**9)) is True
    drawn = toy.split("train", 7)
    assert drawn.equals(toy.split("train", 7))
    positions = [train["example_id"].to_list().index(example) for example in drawn["example_id"]]
    assert positions == sorted(set(positions))
    assert len(positions) == 7
    assert len(toy.split("train", 0)) == 0


def test_toy_rationales_are_true_and_of_training_examples(toy):
    train = set(toy.split("train")["example_id"])
    assert toy.rationales
    assert set(toy.rationales) < train
    users = dict(toy.examples.select("example_id", "user_id").iter_rows())
    for example, steps in list(toy.rationales.items())[:50]:
        assert parse_intent(steps) is not None
        assert toy.world.is_true(steps, users[example], toy.position(example))


def test_rows_and_the_history_budget(toy, small_tokens):
    catalog = build_catalog(toy.interactions.items, small_tokens)
    examples = toy.split("test", 3)
    rows = toy.rows(examples, catalog, small_tokens)
    assert [row["example_id"] for row in rows] == examples["example_id"].to_list()
    names = {"prompt", "example_id", "user_id", "history", "target_id", "cold_item", "cold_user"}
    for row in rows:
        assert set(row) == names
        lines = row["prompt"].split("\n")
        assert (lines[0], lines[-2:]) == ("History:", ["Next:", ""])
        shown = [catalog.find(line) for line in lines[1:-2]]
        assert shown == row["history"][-len(shown) :]  # the newest, oldest first
        assert sum(small_tokens.n_text_tokens(f"{line}\n") for line in lines[1:-2]) <= toy.args.history_tokens
        assert toy.position(row["example_id"]) >= toy.args.min_history


def test_the_tokenizers_texts_hold_titles_and_rationales(toy):
    texts = set(toy.texts())
    assert set(toy.interactions.items["title"]) <= texts
    assert "\n".join(next(iter(toy.rationales.values()))) in texts


@pytest.mark.parametrize(("share", "n_users"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_attribute_rationales_go_to_a_share_of_training_users(log, share, n_users):
    args = DataArguments(**log, rationale_share=share, rationale_attributes=["brand"], split_ratios=[4, 1, 1])
    task = load_task(args)
    train = task.split("train")
    assert train["user_id"].n_unique() == 8  # 4 parts of 6, of 12 users
    users = dict(train.select("example_id", "user_id").iter_rows())
    assert len({users[example] for example in task.rationales}) == n_users
    targets = dict(train.select("example_id", "target_id").iter_rows())
    for example, steps in task.rationales.items():
        assert steps[1] == f"wants: brand{int(targets[example][1:]) % 2}"
    assert task.world is None
    assert load_task(args).rationales == task.rationales


def test_chats_and_masks_are_arguments_of_the_task(log, small_tokens):
    task = load_task(DataArguments(**log, prompt_style="chat", rationale_share=0, split="leave_one_out"))
    catalog = build_catalog(task.interactions.items, small_tokens)
    prompt = task.rows(task.split("test", 1), catalog, small_tokens)[0]["prompt"]
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_data_that_cannot_be_used_is_refused(log, tmp_path):
    with pytest.raises(DataError):
        load_task(DataArguments(dataset=str(tmp_path / "nowhere.csv")))
    with pytest.raises(DataError):
        load_task(DataArguments(**{**log, "min_history": 40}))
    with pytest.raises(ValueError, match="'colour' needs item column"):
        load_task(DataArguments(**log, rationale_attributes=["colour"]))
    assert isinstance(load_task(DataArguments(**log)).examples, pl.DataFrame)
