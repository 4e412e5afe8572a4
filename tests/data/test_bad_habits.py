"""Small logs with the habits that real files have, read as a slow and plain reader reads them, or refused in words."""

import codecs
import csv
import gzip
import io
import json
import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

import numpy as np
import polars as pl
import pytest

from anyo_rl.data.load import load_interactions
from anyo_rl.data.schema import DataError
from anyo_rl.data.tables import PlainTable

NOTHING = ("", "nan", "NaN", "NAN", "null", "NULL", "None", "NA", "<NA>")
SEPARATORS = {"csv": ",", "txt": ";", "tsv": "\t"}


def pick(random, *choices):
    return choices[random.integers(len(choices))]


@dataclass
class Table:
    """A file as drawn: its bytes, and what a plain reader finds in them (rows by column, text or typed values)."""

    name: str
    data: bytes
    rows: list[dict[str, object]]


@dataclass
class Habits:
    """What one log is like; each is drawn once, so that a log has few of them."""

    user: str
    item: str
    time: str
    title: str
    damage: str
    encoding: str

    @property
    def may_refuse(self):
        """Whether one of them is such that a log may not be usable."""
        ids = {self.user, self.item} & {"floats", "breaks"}
        return bool(ids or self.damage) or self.time == "mixed" or self.encoding in ("latin1", "utf16")

    @classmethod
    def draw(cls, random):
        """Most logs are sound but for one or two habits: else all would be refused."""

        def rare(*others, share=0.3):
            return pick(random, *others) if random.random() < share else ""

        return cls(
            user=rare(
                "spaces", "numbers", "floats", "accents", "quotes", "separators", "breaks", "nothing", share=0.6
            ),
            item=rare("spaces", "numbers", "floats", "quotes", "nothing", "unknown"),
            time=pick(random, "s", "ms", "us", "ns", "float", "float ms", "decimals", "negative", "mixed", "moments"),
            title=rare("lists", "quotes", "nothing", "accents", "same"),
            damage=rare("short", "long", "header only", "empty", "no column", "bad time", "blank", "quote"),
            encoding=rare("mark", "crlf", "latin1", "utf16", "gz"),
        )


def draw_id(random, letter, habit):
    number = int(random.integers(1, 4))
    plain = f"{letter}{number}"
    if random.random() < 0.5 and habit not in ("numbers", "floats"):
        return plain
    return {
        "": plain,
        "spaces": pick(random, f" {plain}", f"{plain} ", f"  {plain}  "),
        "numbers": number,
        "floats": pick(random, float(number), float(number), float(number), number + 0.5, math.nan),
        "accents": f"é{plain}",
        "quotes": pick(random, f'"{plain}', f'{plain}"', f'{letter}"{number}', f'"{plain}"'),
        "separators": f"{letter},;|{number}",
        "breaks": pick(random, f"{letter}\n{number}", f"{letter}\t{number}", f"{letter}\r\n{number}"),
        "nothing": pick(random, None, *NOTHING),
        "unknown": "elsewhere",
    }[habit]


def draw_time(random, habit):
    """A time in a few seconds, so that many fall together."""
    second, rest = 1_700_000_000 + int(random.integers(3)), int(random.integers(4))
    if random.random() < 0.05:
        return pick(random, None, "", "nan")
    return {
        "s": second,
        "ms": second * 10**3 + 250 * rest,
        "us": second * 10**6 + rest,
        "ns": second * 10**9 + rest,
        "float": second + rest / 4,
        "float ms": second * 1e3 + rest / 4,
        "decimals": f"{second}.{pick(random, '5', '50', '123456789', '123456788', '0', '')}",
        "negative": f"{-rest}.5" if random.random() < 0.5 else -rest,
        "mixed": pick(random, second, second, second, second * 1000),
        "moments": second * 10**6 + rest,
    }[habit]


def draw_title(random, number, habit):
    return {
        "": f"Title {number}",
        "lists": pick(random, ["Pen", f"Red {number}"], [], f"Title {number}"),
        "quotes": pick(random, f'"Title {number}', f'{number}" ruler', f'"{number}"'),
        "nothing": pick(random, None, "", "nan", f"Title {number}"),
        "accents": f"Tëtle {number} 🖍",
        "same": "Title",
    }[habit]


def as_text(value):
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list) else str(value)


def write_rows(columns, rows, separator):
    """Quoted where it has to be; between tabs as it is, tabs and line breaks inside included."""
    file = io.StringIO()
    if separator == "\t":
        for row in [columns, *rows]:
            file.write("\t".join(map(as_text, row)) + "\n")
    else:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(
            [columns, *[map(as_text, r) for r in rows]]
        )
    return file.getvalue()


def damaged(random, text, separator, habit):
    lines = text.split("\n")
    last = len(lines) - 2
    if habit == "short":
        lines[last] = lines[last].rsplit(separator, 1)[0]
    elif habit == "long":
        lines[last] += f"{separator}5{separator}6"
    elif habit == "blank":
        lines.insert(1 + int(random.integers(last)), "")
    elif habit == "bad time":
        lines[last] = (
            lines[last].rsplit(separator, 1)[0] + separator + pick(random, "monday", "inf", "1e400", "0x1", "1_0")
        )
    elif habit == "quote":
        lines[1] = '"' + lines[1]
    elif habit == "header only":
        lines[1:] = [""]
    elif habit == "empty":
        lines = pick(random, [""], ["", ""])
    return "\n".join(lines)


def encoded(text, habit):
    if habit == "mark":
        return codecs.BOM_UTF8 + text.encode()
    if habit == "crlf":
        return text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
    if habit in ("latin1", "utf16"):
        return text.encode({"latin1": "latin-1", "utf16": "utf-16"}[habit], errors="replace")
    return gzip.compress(text.encode()) if habit == "gz" else text.encode()


def plain_rows(data, separator):
    """Rows of a text table by Python's csv, all text; None where a line is short."""
    text = data.decode("utf-8-sig")
    if separator == "\t":
        lines = [line.removesuffix("\r").split("\t") for line in text.removesuffix("\n").split("\n")]
    else:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    header, *rest = lines
    return [dict(zip(header, [*row, *[None] * len(header)], strict=False)) for row in rest]


def text_table(random, stem, kind, columns, rows, habits, damage):
    separator = SEPARATORS[kind]
    text = damaged(random, write_rows(columns, rows, separator), separator, damage)
    data = encoded(text, habits.encoding)
    name = f"{stem}.{'csv' if kind == 'txt' else kind}" + (".gz" if habits.encoding == "gz" else "")
    readable = habits.encoding != "utf16" and damage not in ("empty", "long")
    try:
        rows = plain_rows(text.encode() if habits.encoding == "gz" else data, separator) if readable else []
    except (UnicodeDecodeError, csv.Error):
        rows = []
    return Table(name, data, rows)


def parquet_table(stem, columns, rows, moments=()):
    series = []
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float} or kinds in ({str}, {list}):
            found = pl.Series(name, [None if v == "" else v for v in values], strict=False)
        else:
            found = pl.Series(name, [None if value is None else as_text(value) for value in values], dtype=pl.String)
        if name in moments and found.dtype == pl.Int64:
            found = found.cast(pl.Datetime("us"))
        series.append(found)
    frame, file = pl.DataFrame(series), io.BytesIO()
    frame.write_parquet(file)
    plain = frame.with_columns(pl.col(pl.Datetime("us")).cast(pl.Int64)).rows(named=True)
    return Table(f"{stem}.parquet", file.getvalue(), plain)


def draw(seed):
    """A log, its items, and the options that read them."""
    random = np.random.default_rng(seed)
    habits = Habits.draw(random)
    n = int(random.integers(1, 13))
    letter = "" if habits.item in ("numbers", "floats") else "i"
    events = [
        (draw_id(random, "u", habits.user), draw_id(random, "i", habits.item), draw_time(random, habits.time))
        for _ in range(n)
    ]
    if random.random() < 0.3:
        events.append(events[0])
    columns = ["user_id", "item_id", "timestamp"]
    if habits.damage == "no column":
        columns[int(random.integers(3))] = "other"
    kind = "parquet" if habits.time == "moments" or random.random() < 0.3 else pick(random, "csv", "txt", "tsv")
    if kind == "parquet":
        log = parquet_table("log", columns, events, ("timestamp",) if habits.time == "moments" else ())
    else:
        log = text_table(random, "log", kind, columns, events, habits, habits.damage)
    items = [(f"{letter}{n}", draw_title(random, n, habits.title)) for n in (1, 2, 3, 1)]
    of_items = kind if kind == "txt" else pick(random, "csv", "tsv", "parquet", "jsonl")
    names = ["item_id", "title"]
    if of_items == "parquet":
        table = parquet_table("items", names, items)
    elif of_items == "jsonl":
        rows = [dict(zip(names, row, strict=True)) for row in items]
        data = encoded(
            "".join(json.dumps(row, ensure_ascii=random.random() < 0.5) + "\n" for row in rows), habits.encoding
        )
        table = Table("items.jsonl" + (".gz" if habits.encoding == "gz" else ""), data, rows)
    else:
        table = text_table(random, "items", of_items, names, items, habits, "")
    return habits, log, table, PlainTable(separator=";") if kind == "txt" else PlainTable()


def plain_id(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = (str(int(value)) if isinstance(value, float) else str(value)).strip()
    return None if text in NOTHING else text


def plain_time(value):
    if value is None or str(value).strip() in NOTHING:
        return None
    return Fraction(value if isinstance(value, int | float) else value.strip())


def plain_title(value, item):
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    text = ", ".join(value) if isinstance(value, list) else (value or "").strip()
    return item if text in ("", "nan") else text


def read_plainly(log, items, moments):
    """The events and titles of a log, one after another, with exact fractions for times."""
    titles = {}
    for row in items.rows:
        item = plain_id(row["item_id"])
        if item is not None and item not in titles:
            titles[item] = plain_title(row["title"], item)
    events = [(plain_id(row["user_id"]), plain_id(row["item_id"]), plain_time(row["timestamp"])) for row in log.rows]
    events = [event for event in events if None not in event]
    if not events:
        return [], titles
    unit = Fraction(10**6) if moments else Fraction(1)
    while not moments and median(math.floor(time) for *_, time in events) / unit >= 10**11:
        unit *= 1000
    found = {(user, item, time / unit): None for user, item, time in events if item in titles}
    return sorted(found, key=lambda event: (event[0], event[2])), titles


def check(seed, folder):
    habits, log, items, options = draw(seed)
    folder.mkdir()
    for table in (log, items):
        (folder / table.name).write_bytes(table.data)
    try:
        found = load_interactions(folder, table=options)
    except DataError as error:
        if str(folder) not in str(error):
            raise AssertionError("an error says which file it is about") from error
        if not habits.may_refuse and read_plainly(log, items, habits.time == "moments")[0]:
            raise AssertionError("nothing is wrong with this one") from error
        return "refused"
    events, titles = read_plainly(log, items, habits.time == "moments")
    assert dict(found.items.select("item_id", "title").iter_rows()) == titles
    expected = [(user, item, math.floor(time)) for user, item, time in events]
    assert found.frame.select("user_id", "item_id", "timestamp").rows() == expected
    fractions = [float(time - math.floor(time)) for *_, time in events]
    kept = found.frame["fraction"].to_list() if "fraction" in found.frame.columns else [0.0] * len(events)
    assert kept == pytest.approx(fractions, abs=1e-12)
    assert found.report["events"] == len(events)
    return "read"


def check_all(seeds, folder):
    outcomes = Counter()
    for seed in seeds:
        try:
            outcomes[check(seed, folder / str(seed))] += 1
        except Exception as error:
            error.add_note(f"log {seed}: {draw(seed)}")
            raise
    assert min(outcomes["read"], outcomes["refused"]) > len(seeds) / 5, "both have to be tried"


def test_a_few_logs(tmp_path):
    check_all(range(40), tmp_path)


@pytest.mark.slow
def test_many_logs(tmp_path):
    check_all(range(40, 340), tmp_path)
