import gzip
import json

import polars as pl
import pytest

from anyo_rl.data.load import data_folder, load_interactions
from anyo_rl.data.movielens import film_title
from anyo_rl.data.schema import DataError
from anyo_rl.data.splits import make_examples
from anyo_rl.data.tables import PlainTable

EVENTS = [("1", "10", 5.0, 978300760), ("1", "20", 3.0, 978300761), ("2", "10", 4.0, 978300000)]


def titles_of(interactions):
    return dict(interactions.items.select("item_id", "title").iter_rows())


def check(interactions, titles, rating=True):
    frame = interactions.frame
    assert frame.select("user_id", "item_id", "timestamp").rows() == [(u, i, t) for u, i, _, t in EVENTS]
    assert frame.schema["timestamp"] == pl.Int64
    if rating:
        assert frame["rating"].to_list() == [r for *_, r, _ in EVENTS]
        assert frame.schema["rating"] == pl.Float32
    assert titles_of(interactions) == titles


def write_ratings(path, separator, header=None, ms=1, gz=False):
    rows = [separator.join([u, i, f"{r:.0f}", str(t * ms)]) for u, i, r, t in EVENTS]
    text = "\n".join(([header] if header else []) + rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if gz else text.encode())


def test_movielens_dat(tmp_path):
    write_ratings(tmp_path / "ratings.dat", "::")
    movies = "10::Misérables, Les (1995)::Drama|Musical\n20::Net: Part 2, The (1995)::Sci-Fi\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    found = load_interactions(tmp_path)
    check(found, {"10": "Misérables, Les (1995)", "20": "The Net: Part 2 (1995)"})
    assert found.items["genres"].to_list() == [["Drama", "Musical"], ["Sci-Fi"]]
    assert found.items["year"].to_list() == ["1995", "1995"]
    assert found.report["latin1_files"] == 1
    check(load_interactions(tmp_path / "ratings.dat"), titles_of(found))


def test_movielens_csv(tmp_path):
    write_ratings(tmp_path / "ratings.csv", ",", "userId,movieId,rating,timestamp")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n10,"American President, The (1995)",Comedy|Drama\n20,Émile,(no genres listed)\n',
        encoding="utf-8",
    )
    (tmp_path / "links.csv").write_text("movieId,imdbId\n10,1\n")
    found = load_interactions(tmp_path)
    check(found, {"10": "The American President (1995)", "20": "Émile"})
    assert found.items["genres"].to_list() == [["Comedy", "Drama"], []]
    assert found.items["year"].to_list() == ["1995", None]


def u_item_line(item_id, title, date, genres):
    flags = ["1" if n in genres else "0" for n in range(19)]
    return "|".join([item_id, title, date, "", "http://us.imdb.com/", *flags])


def test_movielens_100k_of_the_publisher(tmp_path):
    write_ratings(tmp_path / "u.data", "\t")
    (tmp_path / "u1.base").write_text("1\t10\t5\t1\n")
    lines = [
        u_item_line("10", "Misérables, Les (1995)", "01-Jan-1995", {8, 12}),
        u_item_line("20", "unknown", "", {0}),
    ]
    (tmp_path / "u.item").write_bytes("\r\n".join(lines).encode("latin-1"))
    found = load_interactions(tmp_path)
    check(found, {"10": "Misérables, Les (1995)", "20": "unknown"})
    assert found.items["genres"].to_list() == [["Drama", "Musical"], ["unknown"]]
    assert found.items["year"].to_list() == ["1995", None]


@pytest.mark.parametrize(
    ("title", "year", "expected"),
    [
        ("Toy Story", "1995", ("Toy Story (1995)", "1995")),
        ("Usual Suspects, The", "1995", ("The Usual Suspects (1995)", "1995")),
        ("Beans of Egypt, Maine, The", "1994", ("The Beans of Egypt, Maine (1994)", "1994")),
        ("Postino, Il", "1994", ("Postino, Il (1994)", "1994")),
        ("Visitors, The (Visiteurs, Les)", "1993", ("The Visitors (Visiteurs, Les) (1993)", "1993")),
        ("Land Before Time III (1995)", "V", ("Land Before Time III (1995)", "1995")),
        ("unkonwn", "unkonwn", ("unknown", None)),
        ("2001: A Space Odyssey", None, ("2001: A Space Odyssey", None)),
        ("", "1995", ("", "1995")),
    ],
)
def test_film_titles(title, year, expected):
    assert film_title(title, year) == expected


def write_recbole(folder, name="shop"):
    write_ratings(folder / f"{name}.inter", "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float")
    rows = [
        "item_id:token\tprice:float\ttitle:token_seq\tbrand:token_seq",
        '10\t1.5\t6" ruler\tA &amp; B',
        "20\t2\tInk\t",
    ]
    (folder / f"{name}.item").write_text("\n".join(rows) + "\n")


def test_recbole(tmp_path):
    write_recbole(tmp_path)
    found = load_interactions(tmp_path)
    check(found, {"10": '6" ruler', "20": "Ink"})
    assert found.items["brand"].to_list() == ["A & B", None]
    assert found.items["price"].to_list() == ["1.5", "2"]
    assert found.name == tmp_path.name
    assert load_interactions(tmp_path / "shop.inter").name == "shop"


def test_recbole_with_several_logs_needs_a_file(tmp_path):
    write_recbole(tmp_path, "a")
    write_recbole(tmp_path, "b")
    with pytest.raises(DataError, match=r"found 2 files \['a.inter', 'b.inter'\].*name the file"):
        load_interactions(tmp_path)
    check(load_interactions(tmp_path / "b.inter"), {"10": '6" ruler', "20": "Ink"})


@pytest.mark.parametrize("gz", [False, True])
def test_amazon(tmp_path, gz):
    end = ".gz" if gz else ""
    write_ratings(tmp_path / f"Toys.csv{end}", ",", "user_id,parent_asin,rating,timestamp", ms=1000, gz=gz)
    rows = [
        {"parent_asin": "10", "title": "Ball &amp; net", "store": "Acme", "categories": ["Toys", "Balls"], "price": 3},
        {"parent_asin": "20", "title": None, "store": None, "details": {"a": "b"}, "price": "none"},
    ]
    text = "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / f"meta_Toys.jsonl{end}").write_bytes(gzip.compress(text) if gz else text)
    found = load_interactions(tmp_path)
    check(found, {"10": "Ball & net", "20": "20"})
    assert found.report["milliseconds"] == 1
    assert found.report["empty_titles"] == 1
    assert found.items["brand"].to_list() == ["Acme", None]
    assert found.items["categories"].to_list() == [["Toys", "Balls"], []]
    assert found.name == tmp_path.name


GIVEN = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"


def write_minionerec(folder, timestamps=True):
    extra = (",timestamp", ",10", ",20", ",30") if timestamps else ("",) * 4
    (folder / "train.csv").write_text(
        f"{GIVEN}{extra[0]}\n"
        f"""u,"['A ""x""', 'B, b']",C,"[1, 2]",3,"['<a_1>', '<a_2>']",<a_3>{extra[1]}\n"""
    )
    (folder / "valid.csv").write_text(
        f"{GIVEN}{extra[0]}\n" + f"""u,"['A ""x""', 'B, b', 'C']",D,"[1, 2, 3]",4,[],<a_4>{extra[2]}\n"""
    )
    (folder / "test.csv").write_text(f"{GIVEN}{extra[0]}\n" + f"v,[],A,[],1,[],<a_1>{extra[3]}\n")


def test_minionerec_histories_are_kept(tmp_path):
    write_minionerec(tmp_path)
    found = load_interactions(tmp_path)
    assert titles_of(found) == {"3": "C", "4": "D", "1": "A", "2": "B, b"}
    assert found.items["sid"].to_list() == ["<a_3>", "<a_4>", "<a_1>", "<a_2>"]
    assert found.frame.rows() == [("u", "1", 10), ("u", "2", 10), ("u", "3", 10), ("u", "4", 20), ("v", "1", 30)]
    examples = make_examples(found, "given")
    assert examples.rows() == [
        ("u:0", "u", ["1", "2"], "3", 10, "train", False, False),
        ("u:1", "u", ["1", "2", "3"], "4", 20, "validation", True, False),
        ("v:0", "v", [], "1", 30, "test", False, True),
    ]


def test_minionerec_without_timestamps_uses_the_row_order(tmp_path):
    write_minionerec(tmp_path, timestamps=False)
    found = load_interactions(tmp_path)
    assert found.report["timestamps_from_row_order"] == 3
    assert found.frame["timestamp"].to_list() == [0, 0, 0, 1, 2]


def test_minionerec_takes_events_and_items_beside_it(tmp_path):
    write_minionerec(tmp_path)
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t1\t5\nu\t9\t6\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\n1\tOne\n3\tThree\n9\tNine\n")
    found = load_interactions(tmp_path)
    assert found.frame.rows() == [("u", "1", 5), ("u", "9", 6)]
    assert found.given.select("history", "target_id").rows() == [(["1"], "3"), ([], "1")]
    assert found.report["given_dropped"] == 1  # item 4 is not in the item file
    assert found.report["given_history_dropped"] == 1  # nor is item 2


def write_items(path):
    path.write_text("sku,name\n10,Ten\n20,Twenty\n")


COLUMNS = {"user_id": "who", "item_id": "what", "timestamp": "when", "rating": "stars"}
ITEM_COLUMNS = {"item_id": "sku", "title": "name"}


@pytest.mark.parametrize(("name", "separator"), [("log.csv", ","), ("log.tsv", "\t"), ("log.csv", ";")])
def test_plain_text_with_named_columns(tmp_path, name, separator):
    write_ratings(tmp_path / name, separator, separator.join(["who", "what", "stars", "when"]))
    write_items(tmp_path / "items.csv")
    if separator == ";":
        (tmp_path / "items.csv").write_text((tmp_path / "items.csv").read_text().replace(",", ";"))
    found = load_interactions(
        tmp_path, table=PlainTable(COLUMNS, ITEM_COLUMNS, separator if separator == ";" else None)
    )
    check(found, {"10": "Ten", "20": "Twenty"})


def test_plain_parquet_with_integers_and_dates(tmp_path):
    users, items, ratings, times = zip(*EVENTS, strict=True)
    frame = pl.DataFrame(
        {
            "who": [int(u) for u in users],
            "what": [float(i) for i in items],  # pandas turns ids with a gap into floats
            "when": pl.from_epoch(pl.Series(times), "s"),
            "stars": ratings,
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    write_items(tmp_path / "goods.csv")
    found = load_interactions(
        tmp_path / "log.parquet", items_path=tmp_path / "goods.csv", table=PlainTable(COLUMNS, ITEM_COLUMNS)
    )
    check(found, {"10": "Ten", "20": "Twenty"})


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_item_files_of_other_kinds(tmp_path, suffix):
    write_ratings(tmp_path / "log.csv", ",", "user_id,item_id,rating,timestamp")
    items = pl.DataFrame({"item_id": [10, 20], "title": ["Ten", "Twenty"], "tags": [["a"], []], "n": [1, 2]})
    (items.write_ndjson if suffix == "jsonl" else items.write_parquet)(tmp_path / f"items.{suffix}")
    found = load_interactions(tmp_path)
    check(found, {"10": "Ten", "20": "Twenty"})
    assert found.items["tags"].to_list() == [["a"], []]
    assert found.items["n"].to_list() == ["1", "2"]


def test_a_byte_order_mark_and_windows_line_breaks(tmp_path):
    write_ratings(tmp_path / "log.csv", ",", "\ufeffuser_id,item_id,rating,timestamp")
    (tmp_path / "log.csv").write_bytes((tmp_path / "log.csv").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "items.csv").write_bytes(b"item_id,title\r\n10,Ten\r\n20,Twenty\r\n")
    check(load_interactions(tmp_path), {"10": "Ten", "20": "Twenty"})


def test_the_data_folder_is_looked_up_when_called(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYO_RL_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    (tmp_path / "shop").mkdir()
    write_recbole(tmp_path / "shop")
    assert load_interactions("shop").name == "shop"
    assert data_folder("/elsewhere").as_posix() == "/elsewhere"
    monkeypatch.delenv("ANYO_RL_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder() == tmp_path / "home" / ".cache" / "anyo_rl"
    with pytest.raises(DataError, match="'shop': found neither the folder"):
        load_interactions("shop")
    assert load_interactions("shop", data_dir=tmp_path).name == "shop"


def test_office_is_not_downloaded(tmp_path):
    with pytest.raises(DataError, match="'office': found neither the folder"):
        load_interactions("office", data_dir=tmp_path)
