"""MovieLens (`ratings.dat` and `movies.dat`, `ratings.csv` and `movies.csv`, `u.data` and `u.item`), film titles."""

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from anyo_rl.data.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, DataError
from anyo_rl.data.tables import Source, collect, pick_events, pick_items, read_latin1_lines, scan_text_table

# The order of the flags in u.item (u.genre says the same).
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_YEAR = re.compile(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)$")
_ARTICLE = re.compile(r"^(?P<title>[^()]+), (?P<article>The|A|An)(?P<original> \([^()]*\))?$")
# RecBole's ml-100k.item writes the film "unknown" so.
_UNKNOWN = ("unkonwn", "unknown")


def film_title(title: str, year: str | None) -> tuple[str, str | None]:
    """Compose a readable film title, `The Usual Suspects (1995)`, and find the year.

    A trailing English article goes to the front (`Usual Suspects, The`); foreign ones stay where they are. A year
    that is not four digits counts as missing; a year that the title states itself wins and is not repeated.
    """
    title = title.strip()
    if year is not None and not re.fullmatch(r"\d{4}", year):
        year = None
    if match := _YEAR.match(title):
        title, year = match["title"], match["year"]
    if title in _UNKNOWN:
        title = "unknown"
    if match := _ARTICLE.match(title):
        title = f"{match['article']} {match['title']}{match['original'] or ''}"
    return (f"{title} ({year})" if year and title else title), year


def read_ratings_dat(ratings: Path, movies: Path) -> Source:
    """`user::item::rating::timestamp` and `item::title (year)::genre|genre` (1M, 10M)."""
    # The reader's separator is one byte: `::` is an empty field between two colons.
    names = [USER_ID, "_1", ITEM_ID, "_2", RATING, "_3", TIMESTAMP]
    try:
        events = scan_text_table(ratings, ":", names=names, quoted=False).select(USER_ID, ITEM_ID, TIMESTAMP, RATING)
    except DataError as error:
        raise DataError(f"{error} (expected `user::item::rating::timestamp`)") from None
    lines, latin1 = read_latin1_lines(movies)
    rows = _split_lines(lines, "::", 3, movies)
    items = _films([(row[0], row[1], None, row[2].split("|")) for row in rows])
    return Source(events, items, ratings, movies, {"latin1_files": int(latin1)})


def read_ratings_csv(ratings: Path, movies: Path) -> Source:
    """`userId,movieId,rating,timestamp` and `movieId,title,genres` (25M, 32M, latest)."""
    defaults = {USER_ID: "userId", ITEM_ID: "movieId"}
    events = pick_events(scan_text_table(ratings, ","), ratings, defaults=defaults)
    table = pick_items(collect(scan_text_table(movies, ","), movies), movies, None, ["movieId"], ["title"])
    genres = table["genres"].to_list() if "genres" in table.columns else [None] * len(table)
    rows = zip(table[ITEM_ID].to_list(), table["title"].to_list(), genres, strict=True)
    items = _films([(item, title or "", None, (genre or "").split("|")) for item, title, genre in rows])
    return Source(events, items, ratings, movies)


def read_u_data(ratings: Path, movies: Path) -> Source:
    """`u.data` (tab: user, item, rating, timestamp) and `u.item` (latin-1, bars, 19 genre flags) of ml-100k."""
    events = scan_text_table(ratings, "\t", names=[USER_ID, ITEM_ID, RATING, TIMESTAMP], quoted=False)
    lines, latin1 = read_latin1_lines(movies)
    films = []
    for row in _split_lines(lines, "|", 5 + len(GENRES_100K), movies):
        flags = zip(row[5:], GENRES_100K, strict=True)
        date = row[2].rsplit("-", 1)[-1]  # 01-Jan-1995
        films.append((row[0], row[1], date, [genre for flag, genre in flags if flag.strip() == "1"]))
    return Source(
        events.select(USER_ID, ITEM_ID, TIMESTAMP, RATING),
        _films(films),
        ratings,
        movies,
        {"latin1_files": int(latin1)},
    )


def _split_lines(lines: list[str], separator: str, n_fields: int, path: Path) -> list[list[str]]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = line.split(separator)
        if len(row) != n_fields:
            raise DataError(
                f"{path}: line {number} has {len(row)} field(s), expected {n_fields} separated by {separator!r}: "
                f"{line[:80]!r}: fix the line or convert the file"
            )
        rows.append(row)
    return rows


def _films(rows: Sequence[tuple[str, str, str | None, list[str]]]) -> pl.DataFrame:
    titles = [film_title(title, year) for _, title, year, _ in rows]
    genres = [[g.strip() for g in genres if g.strip() and g != "(no genres listed)"] for *_, genres in rows]
    return pl.DataFrame(
        {
            ITEM_ID: [row[0] for row in rows],
            "title": [title for title, _ in titles],
            "year": [year for _, year in titles],
            "genres": genres,
        },
        schema={ITEM_ID: pl.String, "title": pl.String, "year": pl.String, "genres": pl.List(pl.String)},
    )
