"""The published data sets, where they are at hand."""

import polars as pl
import pytest

from anyo_rl.data.load import load_interactions
from anyo_rl.data.splits import k_core, make_examples


def titles_of(interactions):
    return dict(interactions.items.select("item_id", "title").iter_rows())


@pytest.fixture(scope="module")
def ml_100k(data_folder):
    return load_interactions("ml-100k", data_dir=data_folder)


@pytest.fixture(scope="module")
def office(data_folder):
    return load_interactions("office", data_dir=data_folder)


def test_ml_100k(ml_100k):
    report = ml_100k.report
    assert (report["events"], report["users"], report["items"]) == (100_000, 943, 1_682)
    assert report["duplicate_events"] == report["unknown_item"] == report["null_key"] == 0
    assert report["colliding_titles"] == 18
    titles = titles_of(ml_100k)
    assert titles["1"] == "Toy Story (1995)"
    assert titles["12"] == "The Usual Suspects (1995)"
    assert titles["267"] == "unknown"
    assert titles["1633"] == "Á köldum klaka (Cold Fever) (1994)"
    items = ml_100k.items
    assert items.columns == ["item_id", "title", "year", "genres"]
    assert items.filter(pl.col("item_id") == "1")["genres"].to_list() == [["Animation", "Children's", "Comedy"]]
    assert items["year"].null_count() == 1


def test_ml_100k_splits(ml_100k):
    examples = make_examples(ml_100k, train_targets="last")
    assert examples["split"].value_counts().sort("split").rows() == [
        ("test", 943),
        ("train", 943),
        ("validation", 943),
    ]
    assert examples["history"].list.len().max() == 50
    assert len(k_core(ml_100k, 5).items) == 1_349


def test_office(office):
    report = office.report
    assert (report["events_read"], report["duplicate_events"], report["users"], report["items"]) == (
        21_297,
        7,
        3_231,
        3_459,
    )
    assert report["colliding_titles"] == 16
    assert (report["given_rows"], report["given_dropped"], report["given_history_dropped"]) == (18_402, 0, 0)
    assert office.items.columns == ["item_id", "title", "brand", "sid"]
    assert not office.items["title"].str.contains("&[a-z]+;|\n|->").any()
    unseen = set(office.items["item_id"]) - set(office.frame["item_id"])
    assert len(unseen) == 142


def test_office_histories_are_the_published_ones(office, data_folder):
    examples = make_examples(office, "given")
    assert examples["split"].value_counts().sort("split").rows() == [
        ("test", 4_866),
        ("train", 8_670),
        ("validation", 4_866),
    ]
    published = pl.read_csv(data_folder / "office" / "test.csv", infer_schema=False)
    test = examples.filter(pl.col("split") == "test")
    assert test["user_id"].to_list() == published["user_id"].to_list()
    assert test["target_id"].to_list() == published["item_id"].to_list()
    assert [str([int(i) for i in h]) for h in test["history"].to_list()] == published["history_item_id"].to_list()


def test_office_from_its_csv_files_alone(office, data_folder, tmp_path):
    for name in ("train.csv", "valid.csv", "test.csv"):
        (tmp_path / name).symlink_to(data_folder.resolve() / "office" / name)
    alone = load_interactions(tmp_path)
    assert alone.given.equals(office.given)
    assert set(alone.items["item_id"]) <= set(office.items["item_id"])
    titles = titles_of(office)
    assert all(titles[item] == title for item, title in titles_of(alone).items())
