import gzip
import os
import subprocess
import sys
from datetime import datetime, timedelta

import polars as pl
import pytest

from anyo_rl.data.load import load_interactions
from anyo_rl.data.schema import DataError
from anyo_rl.data.tables import PlainTable
from anyo_rl.data.text import MAX_TITLE_CHARS

HEADER = "user_id,item_id,timestamp,rating\n"
ITEMS = "item_id,title\na,Apple\nb,Bread\n"


def titles_of(interactions):
    return dict(interactions.items.select("item_id", "title").iter_rows())


@pytest.fixture
def load(tmp_path):
    def write_and_load(log, items=ITEMS, name="log.csv", **options):
        (tmp_path / name).write_bytes(log if isinstance(log, bytes) else log.encode())
        if items is not None:
            (tmp_path / "items.csv").write_bytes(items if isinstance(items, bytes) else items.encode())
        return load_interactions(tmp_path / name, **options)

    return write_and_load


def counted(interactions):
    derived = ("events_read", "events", "users", "items", "single_event_users")
    return {key: n for key, n in interactions.report.items() if n and key not in derived}


def test_duplicates_keep_the_first(load):
    found = load(HEADER + "u,a,1,5\nu,b,1,3\nu,a,1,4\nu,a,2,4\nv,a,1,5\n")
    assert found.frame.rows() == [("u", "a", 1, 5.0), ("u", "b", 1, 3.0), ("u", "a", 2, 4.0), ("v", "a", 1, 5.0)]
    assert counted(found) == {"duplicate_events": 1}
    assert found.report["events_read"] == 5
    assert found.report["events"] == 4


def test_unsorted_events_are_sorted_and_ties_keep_their_order(load):
    found = load(HEADER + "v,b,7,1\nu,b,9,1\nu,a,3,2\nv,a,7,3\n")
    assert found.frame.select("user_id", "item_id").rows() == [("u", "a"), ("u", "b"), ("v", "b"), ("v", "a")]
    assert counted(found) == {"unsorted_events": 1}


def test_missing_keys_are_dropped(load):
    found = load(HEADER + ",a,1,1\nu,,1,1\nu,a,,1\nu,a,NaN,1\nnan,a,1,1\nu,a\nu,a,5,\nu,b,6,nan\n")
    assert found.frame.rows() == [("u", "a", 5, None), ("u", "b", 6, None)]
    assert counted(found) == {"null_key": 6}


def test_parquet_nan_and_null_are_dropped(tmp_path):
    frame = pl.DataFrame(
        {"user_id": ["u", "u", None], "item_id": ["a", "b", "a"], "timestamp": [1.5, float("nan"), 2.0]}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "items.csv").write_text(ITEMS)
    found = load_interactions(tmp_path)
    assert found.frame.rows() == [("u", "a", 1, 0.5)]
    assert counted(found) == {"null_key": 2}


@pytest.mark.parametrize("null", ["", "nan", "NaN", "NAN", "null", "NULL", "None", "NA", "<NA>"])
def test_nothing_is_nothing_in_every_column(load, null):
    found = load(HEADER + f"{null},a,1,1\nu,{null},1,1\nu,a,{null},1\nu,b,3,{null}\n", ITEMS + f"{null},Nothing\n")
    assert found.frame.rows() == [("u", "b", 3, None)]
    assert counted(found) == {"null_key": 3, "null_item_id": 1}


def test_ids_that_are_fractions_are_refused(tmp_path):
    times = {"timestamp": [1, 2, 3]}
    pl.DataFrame({"item_id": [1.0, None], "title": ["One", "None"]}).write_parquet(tmp_path / "items.parquet")
    log = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": [7.0, float("nan"), None], "item_id": [1.0] * 3, **times}).write_parquet(log)
    assert load_interactions(log).frame.rows() == [("7", "1", 1)]
    for wrong, shown in (([1.0, 1.2, 1.9], "1.2"), ([1.0, 1.0, float("inf")], "inf"), ([1.0, 1.0, -1e20], "-1e[+]20")):
        for name in ("user_id", "item_id"):
            frame = {"user_id": [1.0] * 3, "item_id": [1.0] * 3, **times, name: wrong}
            pl.DataFrame(frame).write_parquet(log)
            with pytest.raises(DataError, match=rf"log.parquet: found {shown} as {name} .*text or a whole number"):
                load_interactions(log)
    pl.DataFrame({"user_id": ["u"] * 3, "item_id": [1.0] * 3, **times}).write_parquet(log)
    pl.DataFrame({"item_id": [1.0, 1.5], "title": ["One", "?"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: found 1.5 as item_id .1 of 2 rows."):
        load_interactions(log)


def test_attributes_that_are_no_text_are_left_out(load, tmp_path):
    day = datetime(1999, 12, 31)
    columns = {
        "text": ["x"],
        "kind": pl.Series(["tea"], dtype=pl.Categorical),
        "number": [3],
        "yes": [True],
        "date": [day.date()],
        "moment": [day],
        "tags": [["a", "<b>b</b>"]],
        "picture": [b"\xff\x00"],
        "length": [timedelta(hours=1)],
        "nested": [{"a": 1}],
        "vector": [[1.0, 2.0]],
        "nothing": pl.Series([None], dtype=pl.Null),
    }
    pl.DataFrame({"item_id": ["a"], "title": ["Apple"], **columns}).write_parquet(tmp_path / "goods.parquet")
    items = load(HEADER + "u,a,1,1\n", items_path=tmp_path / "goods.parquet").items
    assert items.rows(named=True) == [
        {
            "item_id": "a",
            "title": "Apple",
            "text": "x",
            "kind": "tea",
            "number": "3",
            "yes": "true",
            "date": "1999-12-31",
            "moment": "1999-12-31 00:00:00.000000",
            "tags": ["a", "b"],
            "nothing": None,
        }
    ]


def test_a_large_item_file_with_several_threads(tmp_path):
    """Polars splits large tables among its threads; in this process it has one."""
    names = [f"i{item}" for item in range(40_000)]
    pl.DataFrame({"item_id": names, "title": names}).write_parquet(tmp_path / "items.parquet")
    log = {"user_id": ["u"] * 40_000, "item_id": names, "timestamp": range(40_000)}
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    code = (
        "import sys; from anyo_rl.data.load import load_interactions; found = load_interactions(sys.argv[1]); "
        "print(len(found.frame), len(found.items))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    env = os.environ | {"POLARS_MAX_THREADS": "3"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["40000", "40000"]


def test_a_title_that_is_no_text_names_the_item_file(load, tmp_path):
    pl.DataFrame({"item_id": ["a"], "title": [b"\xff"]}).write_parquet(tmp_path / "goods.parquet")
    with pytest.raises(DataError, match=r"goods.parquet: the column for title is .*, expected text"):
        load(HEADER + "u,a,1,1\n", items_path=tmp_path / "goods.parquet")


@pytest.mark.parametrize("tab", ["\t", "\n", "\r\n"])
def test_an_id_of_several_lines_is_refused(load, tab):
    """Such as a quote that is not closed leaves: it swallows what follows up to the next one."""
    for name, row in (("user_id", f'"u{tab}v",a,2,1'), ("item_id", f'u,"a{tab}b",2,1')):
        with pytest.raises(
            DataError, match=rf"log.csv: found .* as {name} .1 of 2 rows..*without tabs or line breaks"
        ):
            load(HEADER + f"u,a,1,1\n{row}\n")
    with pytest.raises(DataError, match=r"items.csv: found .* as item_id .1 of 3 rows..*without tabs or line breaks"):
        load(HEADER + "u,a,1,1\n", ITEMS + f'"c{tab}d",Cake\n')


def test_unknown_items_are_dropped(load):
    found = load(HEADER + "u,a,1,1\nu,zzz,2,1\n")
    assert found.frame["item_id"].to_list() == ["a"]
    assert counted(found) == {"unknown_item": 1}
    with pytest.raises(
        DataError, match=r"none of its items is in the item file: found ids like \['x'\].*\['a', 'b'\]"
    ):
        load(HEADER + "u,x,1,1\n")


def test_single_event_users_are_counted_and_kept(load):
    found = load(HEADER + "u,a,1,1\nv,a,1,1\nv,b,2,1\n")
    assert found.report["single_event_users"] == 1
    assert found.report["users"] == 2


def test_space_around_ids_goes(load):
    assert load(HEADER + " u , a ,1, 2\n").frame.rows() == [("u", "a", 1, 2.0)]


def test_titles_empty_html_emoji_long_and_control(load):
    long = "long " * 2_000
    items = (
        'item_id,title\na,\nb,<b>Bread</b> &amp; butter\nc,🖍️ Crayon\nd,"two\nlines -> \x07"\n'
        f"e,{long}\nf,{'x' * 10_000}\ng,🖍️ Crayon\na,again\n,no id\nh,   \ni,nan\n"
    )
    found = load(HEADER + "u,a,1,1\n", items)
    titles = titles_of(found)
    assert titles["a"] == "a"
    assert titles["h"] == "h"
    assert titles["i"] == "i"
    assert titles["b"] == "Bread & butter"
    assert titles["c"] == titles["g"] == "🖍️ Crayon"
    assert titles["d"] == "two lines →"
    assert titles["e"].endswith(" long…")
    assert len(titles["e"]) <= MAX_TITLE_CHARS
    assert titles["f"] == "x" * (MAX_TITLE_CHARS - 1) + "…"
    assert list(titles) == list("abcdefghi")
    counts = counted(found)
    assert counts.pop("cleaned_titles") >= 2
    assert counts == {
        "empty_titles": 3,
        "truncated_titles": 2,
        "colliding_titles": 1,
        "duplicate_items": 1,
        "null_item_id": 1,
    }
    short = titles_of(load(HEADER + "u,a,1,1\n", items, max_title_chars=8))
    assert short["b"] == "Bread &…"


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_the_unit_of_time_is_found(load, unit):
    found = load(HEADER + f"u,a,{1_600_000_000 * unit},1\nu,b,{1_500_000_000 * unit},1\n")
    assert found.frame["timestamp"].to_list() == [1_500_000_000, 1_600_000_000]
    assert found.report["milliseconds"] == int(unit > 1)


def test_other_forms_of_time(load):
    assert load(HEADER + "u,a,8.5e8,1\nu,b,3.0,1\n").frame["timestamp"].to_list() == [3, 850_000_000]
    assert load(HEADER + "u,a,-5,1\nu,b,0,1\n").frame["timestamp"].to_list() == [-5, 0]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "the file is empty"),
        ("\n", "the file is empty"),
        (HEADER, "found no events, expected at least one row"),
        ("user_id,item_id,rating\nu,a,1\n", r"missing \['timestamp'\].*columns=\{'timestamp': ...\}"),
        ("user,item,when\nu,a,1\n", r"found the columns \['user', 'item', 'when'\]"),
        (HEADER + "u,a,monday,1\n", "found 'monday' as timestamp .1 of 1 rows., expected seconds"),
        (HEADER + "u,a,2020-01-01,1\nu,b,3,1\n", "found '2020-01-01' as timestamp"),
        (HEADER + "u,a,inf,1\n", "found 'inf' as timestamp"),
        (HEADER + "u,a,1,good\n", "found 'good' as rating .* expected a number"),
        (HEADER + ",a,1,1\n", "found no event with user, item and timestamp .1 rows"),
        (HEADER.replace(",", ";") + "u;a;1;1\n", "separated by comma; the line looks separated by semicolon"),
        (HEADER.replace(",", "\t") + "u\ta\t1\t1\n", "separated by comma; the line looks separated by tab"),
        (HEADER + "u,a,1,1,1,1\n", "cannot be read .found more fields"),
        (HEADER + 'u,"a,1,1\n', "cannot be read"),
        ((HEADER + "é,a,1,1\n").encode("latin-1"), "is not UTF-8 .*iconv"),
        (HEADER + "u,a,1600000000,1\nu,a,1600000000000,1\nu,b,1600000000001,1\n", "timestamps of mixed units"),
        (HEADER + "u,a,1600000000,1\nu,a,1600000001,1\nu,b,1600000000001,1\n", "timestamps of mixed units"),
    ],
)
def test_a_bad_log_is_one_clear_error(load, log, message):
    with pytest.raises(DataError, match=message) as caught:
        load(log)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("", "items.csv: the file is empty"),
        ("item_id,title\n", "items.csv: found no items in the item file"),
        ("item_id,price\na,1\n", r"found the columns \['item_id', 'price'\].*'title'"),
        ("sku,title\na,1\n", r"for 'item_id': rename it, or pass item_columns=\{'item_id': ...\}"),
        ("item_id,title\na,é\n".encode("latin-1"), "items.csv: is not UTF-8"),
        (None, "found no item file beside it"),
    ],
)
def test_a_bad_item_file_is_one_clear_error(load, items, message):
    with pytest.raises(DataError, match=message):
        load(HEADER + "u,a,1,1\n", items)


def test_other_bad_input(load, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_interactions(tmp_path / "missing")
    with pytest.raises(DataError, match="no such file or folder"):
        load_interactions("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected one of: ratings.dat"):
        load_interactions(tmp_path / "empty")
    log = HEADER + "u,a,1,1\n"
    with pytest.raises(DataError, match="no such item file"):
        load(log, items_path=tmp_path / "missing.csv")
    with pytest.raises(DataError, match=r"columns names \['person'\]: expected some of"):
        load(log, table=PlainTable(columns={"person": "user_id"}))
    with pytest.raises(DataError, match=r"missing \['stars'\]"):
        load(log, table=PlainTable(columns={"rating": "stars"}))
    (tmp_path / "log.parquet").write_bytes(b"PAR1 is not all")
    with pytest.raises(DataError, match="cannot be read"):
        load_interactions(tmp_path / "log.parquet")
    (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(log.encode())[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        load_interactions(tmp_path / "bad.csv.gz")
    (tmp_path / "bad.jsonl").write_text('{"item_id": "a", "title"\n')
    with pytest.raises(DataError, match="cannot be read"):
        load(log, items_path=tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings.dat", "1,2,3,4\n", "expected `user::item::rating::timestamp`"),
        ("ratings.dat", "1::2::x::4\n", "found 'x' as rating"),
        ("u.data", "1,2,3,4\n", "separated by tab; the line looks separated by comma"),
        ("shop.inter", "user_id\titem_id\ttimestamp\n1\t2\t3\n", "expected RecBole's `name:type`"),
        ("shop.inter", "user_id:token,item_id:token,timestamp:float\n", "separated by tab"),
    ],
)
def test_a_bad_file_of_a_known_format(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    (tmp_path / "movies.dat").write_text("2::Two::Drama\n")
    (tmp_path / "u.item").write_text("2|Two|||" + "|0" * 20 + "\n")
    (tmp_path / "shop.item").write_text("item_id:token\ttitle:token_seq\n2\tTwo\n")
    with pytest.raises(DataError, match=message):
        load_interactions(tmp_path / name)


def test_a_bad_movie_line_is_named(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n")
    (tmp_path / "movies.dat").write_text("2::Two::Drama\n3::Three\n")
    with pytest.raises(DataError, match=r"line 2 has 2 field.s., expected 3 separated by '::'"):
        load_interactions(tmp_path)


def test_a_missing_item_file_of_a_known_format(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n")
    with pytest.raises(DataError, match=r"movies.dat: no such file"):
        load_interactions(tmp_path)


def test_one_item_and_one_user_are_enough_for_a_log(load):
    found = load(HEADER + "u,a,1,1\n", "item_id,title\na,Apple\n")
    assert (len(found.frame), len(found.items)) == (1, 1)
