"""Files as people have them: quotes between tabs, byte-order marks, lists in place of titles, brackets in names."""

import codecs
import gzip
import json

import polars as pl
import pytest

from anyo_rl.data.load import load_interactions
from anyo_rl.data.schema import DataError
from anyo_rl.data.tables import PlainTable

LOG = "user_id,item_id,timestamp\nu,1,1\nu,2,2\nu,3,3\n"
ITEMS = "item_id,title\n1,Tea\n2,Mug\n3,Lamp\n"


@pytest.fixture
def write(tmp_path):
    def write_files(**files):
        """Files by their name, with `__` for the dot; returns the folder."""
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name.replace("__", ".")).write_bytes(data)
        return tmp_path

    return write_files


def titles_of(interactions):
    return dict(interactions.items.select("item_id", "title").iter_rows())


def test_a_quote_between_tabs_is_a_character(write):
    log = 'user_id\titem_id\ttimestamp\trating\n"u\t1\t1\t5\nu\t2\t2\t5\nu"\t3\t3\t4\nw\t3\t4\t4\n'
    found = load_interactions(write(log__tsv=log, items__csv=ITEMS))
    assert found.frame.select("user_id", "item_id").rows() == [('"u', "1"), ("u", "2"), ('u"', "3"), ("w", "3")]
    folder = write(goods__csv=log, items__csv=ITEMS.replace(",", "\t"))
    again = load_interactions(folder / "goods.csv", table=PlainTable(separator="\t"))
    assert again.frame.equals(found.frame)


def test_a_title_in_inches_between_tabs_swallows_nothing(write):
    items = 'item_id\ttitle\n1\t"Great Performances\n2\tCats 12"\n3\tNail\n'
    found = load_interactions(write(log__csv=LOG, items__tsv=items))
    assert titles_of(found) == {"1": '"Great Performances', "2": 'Cats 12"', "3": "Nail"}
    assert found.report["events"] == 3


def test_quotes_between_tabs_where_they_are_asked_for(write):
    items = 'item_id\ttitle\n1\t"Tea\tgreen"\n2\t"6"" ruler"\n3\tLamp\n'
    folder = write(log__csv=LOG, items__tsv=items)
    found = load_interactions(folder, table=PlainTable(quoted=True))
    assert titles_of(found) == {"1": "Tea green", "2": '6" ruler', "3": "Lamp"}
    with pytest.raises(DataError, match=r"items.tsv: cannot be read .found more fields"):
        load_interactions(folder)
    plain = load_interactions(write(log__csv=LOG, items__tsv='item_id,title\n1,"Tea\n'.replace(",", "\t")))
    assert titles_of(plain) == {"1": '"Tea'}
    unquoted = load_interactions(
        write(log__csv=LOG, items__csv='item_id,title\n1,"Tea\n2,Mug"\n'), table=PlainTable(quoted=False)
    )
    assert titles_of(unquoted) == {"1": '"Tea', "2": 'Mug"'}


@pytest.mark.parametrize("separator", ["::", "", "é", '"', "\n", "||"])
def test_a_separator_that_is_not_one_character_is_one_clear_error(separator):
    with pytest.raises(DataError, match=r"separator is .*expected one ASCII character"):
        PlainTable(separator=separator)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_json_lines_with_a_byte_order_mark(write, end):
    lines = codecs.BOM_UTF8 + b'{"item_id":"1","title":"Tea"}\n{"item_id":"2","title":"Mug"}\n'
    folder = write(log__csv=LOG, **{f"items__jsonl{end}": gzip.compress(lines) if end else lines})
    found = load_interactions(folder)
    assert titles_of(found) == {"1": "Tea", "2": "Mug"}
    assert found.report["unknown_item"] == 1


def test_amazon_with_a_byte_order_mark(write):
    rows = [
        {"parent_asin": "B01", "title": "Pen", "price": "—", "categories": ["Office", "Pens"], "store": "Bic"},
        {"parent_asin": "B02", "title": "Ink", "price": 12.5, "categories": [], "store": None},
        {"parent_asin": "B03", "title": "Pad", "price": None, "categories": None},
    ]
    meta = codecs.BOM_UTF8 + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    folder = write(
        Office__csv="user_id,parent_asin,rating,timestamp\nu,B01,5.0,1600000000123\n", meta_Office__jsonl=meta
    )
    found = load_interactions(folder)
    assert titles_of(found) == {"B01": "Pen", "B02": "Ink", "B03": "Pad"}
    assert found.items["brand"].to_list() == ["Bic", None, None]
    assert found.frame.rows() == [("u", "B01", 1_600_000_000, 0.123, 5.0)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b'{"item_id": "1", "title"\n', "cannot be read .*expected one JSON object on each line"),
        ('{"item_id": "1", "title": "Tea"}\n'.encode("utf-16"), "is UTF-16, expected UTF-8"),
    ],
)
def test_bad_json_lines_are_one_fitting_error(write, content, said):
    with pytest.raises(DataError, match=rf"items.jsonl: {said}"):
        load_interactions(write(log__csv=LOG, items__jsonl=content))


def test_a_log_in_utf16_is_one_clear_error(write):
    with pytest.raises(DataError, match=r"log.csv: is UTF-16, expected UTF-8: convert it, .*iconv"):
        load_interactions(write(log__csv=LOG.encode("utf-16"), items__csv=ITEMS))


LISTS = {"1": None, "2": ["Mug", "Cup"], "3": "[REC] {2}"}


@pytest.mark.parametrize("kind", ["jsonl", "mixed jsonl", "amazon", "parquet", "text parquet", "csv"])
def test_a_list_in_place_of_a_title_has_one_outcome(write, kind):
    titles = LISTS | {"3": ["Lamp"]} if kind in ("jsonl", "parquet") else LISTS
    lines = "\n".join(json.dumps({"item_id": item, "title": title}) for item, title in titles.items())
    folder = write(log__csv=LOG)
    if kind == "amazon":
        folder = write(
            log__csv=LOG.replace("item_id", "parent_asin"), meta_log__jsonl=lines.replace("item_id", "parent_asin")
        )
    elif kind.endswith("jsonl"):
        write(items__jsonl=lines)
    elif kind == "csv":
        write(items__csv="item_id,title\n1,\n2,\"['Mug', 'Cup']\"\n3,[REC] {2}\n")
    else:
        values = list(titles.values()) if kind == "parquet" else [None, '["Mug", "Cup"]', LISTS["3"]]
        pl.DataFrame({"item_id": list(titles), "title": values}).write_parquet(folder / "items.parquet")
    found = load_interactions(folder / "log.csv", items_path=folder / "meta_log.jsonl" if kind == "amazon" else None)
    assert titles_of(found) == {"1": "1", "2": "Mug, Cup", "3": "Lamp" if titles["3"] == ["Lamp"] else "[REC] {2}"}
    assert found.report["list_titles"] == 1 + (titles["3"] == ["Lamp"])
    assert found.report["empty_titles"] == 1


def test_titles_that_are_absent_lists_and_objects(write):
    lines = '{"item_id":"1","title":null}\n{"item_id":"2","title":["Mug","Cup"]}\n{"item_id":"3"}\n'
    assert titles_of(load_interactions(write(log__csv=LOG, items__jsonl=lines))) == {
        "1": "1",
        "2": "Mug, Cup",
        "3": "3",
    }
    lines = '{"item_id":"1","title":{"en":"Tea","n":2}}\n{"item_id":"2","title":{"en":null}}\n{"item_id":"3"}\n'
    found = load_interactions(write(items__jsonl=lines))
    assert titles_of(found) == {"1": "Tea, 2", "2": "2", "3": "3"}
    assert (found.report["list_titles"], found.report["empty_titles"]) == (2, 2)


GIVEN = "user_id,history_item_title,item_title,history_item_id,item_id\n"
FLOATS = {
    "train__csv": GIVEN + "u,\"['Tea', 'Mug']\",Pen,\"[1.0, 2.0]\",3\nv,['Pen'],Tea,[3.0],1\nw,['Pen'],Mug,[3.0],2\n",
    "valid__csv": GIVEN + "u,\"['Tea', 'Mug', 'Pen']\",Tea,\"[1.0, 2.0, 3.0]\",1\n",
    "test__csv": GIVEN + "v,\"['Pen', 'Tea']\",Mug,\"[3.0, 1.0]\",2\n",
}


def test_histories_of_floats_name_the_items_that_they_mean(write):
    found = load_interactions(write(**FLOATS))
    assert titles_of(found) == {"3": "Pen", "1": "Tea", "2": "Mug"}
    assert found.given["history"].to_list() == [["1", "2"], ["3"], ["3"], ["1", "2", "3"], ["3", "1"]]
    # What else writes the same: numpy's spaces, text, targets that are floats, gaps.
    for old, new in (
        ("[1.0, 2.0]", "[1. 2.]"),
        ("[1.0, 2.0]", "['1.0', '2']"),
        (",3\nv", ",3.0\nv"),
        ("[3.0]", "[3.0 nan]"),
    ):
        other = load_interactions(write(train__csv=FLOATS["train__csv"].replace(old, new)))
        assert other.given["history"].to_list() == found.given["history"].to_list(), new
        assert titles_of(other) == titles_of(found)
    quoted = GIVEN + """u,"['Tea', 'Mug']",Pen,"['a,b', 'c']",3\n"""
    assert load_interactions(write(train__csv=quoted)).given["history"].to_list()[0] == ["a,b", "c"]


@pytest.mark.parametrize(
    ("old", "new"), [("[1.0, 2.0]", "[1.5, 2.0]"), ("[1.0, 2.0]", "[1e+20]"), (",3\nv", ",.5\nv")]
)
def test_histories_of_fractions_are_refused(write, old, new):
    with pytest.raises(DataError, match=r"train.csv: found a fraction among the ids .*1 of 5 rows.*whole numbers"):
        load_interactions(write(**FLOATS | {"train__csv": FLOATS["train__csv"].replace(old, new)}))


def test_a_history_lies_before_the_earliest_row_of_its_user(write):
    files = {name: text.replace("item_id\n", "item_id,timestamp\n") for name, text in FLOATS.items()}
    rows = "u,\"['Tea', 'Mug']\",Pen,\"[1, 2]\",3,1600000000500\nu,['Tea'],Mug,[1],2,1600000000100\n"
    files["train__csv"] = files["train__csv"].split("\n")[0] + "\n" + rows
    files["valid__csv"] = files["valid__csv"].replace(",1\n", ",1,1600000001000\n")
    files["test__csv"] = files["test__csv"].replace(",2\n", ",2,1600000002000\n")
    found = load_interactions(write(**files))
    assert found.frame.filter(user_id="u")["item_id"].to_list() == ["1", "2", "3", "1"]


def test_a_path_is_no_pattern(tmp_path):
    decoy, folder = tmp_path / "a1", tmp_path / "a[1]"
    for place, user in ((decoy, "decoy"), (folder, "u")):
        place.mkdir()
        for name in ("log[1]", "log1", "lo*", "log?"):
            who = "decoy" if name == "log1" else user
            (place / f"{name}.csv").write_text(f"user_id,item_id,timestamp\n{who},1,1\n")
            pl.DataFrame({"user_id": [who], "item_id": ["1"], "timestamp": [1]}).write_parquet(
                place / f"{name}.parquet"
            )
            (place / f"{name}.items.csv").write_text(f"item_id,title\n1,{who}\n")
            (place / f"{name}.items.jsonl").write_text(f'{{"item_id":"1","title":"{who}"}}\n')
            pl.DataFrame({"item_id": ["1"], "title": [who]}).write_parquet(place / f"{name}.items.parquet")
    for name in ("log[1]", "lo*", "log?"):
        for log in ("csv", "parquet"):
            for items in ("csv", "jsonl", "parquet"):
                found = load_interactions(folder / f"{name}.{log}", items_path=folder / f"{name}.items.{items}")
                assert found.frame["user_id"].to_list() == ["u"]
                assert titles_of(found) == {"1": "u"}
    for name in ("items.jsonl", "log.csv"):
        (folder / name).write_text((folder / ("lo*." + name.replace("log.", ""))).read_text())
    assert load_interactions(folder / "log.csv").frame["user_id"].to_list() == ["u"]
