"""One door for every log: a name or a path in, validated `Interactions` out."""

import os
from dataclasses import dataclass
from pathlib import Path

from anyo_rl.data.clean import clean_source
from anyo_rl.data.download import ML_100K_MD5, ML_100K_URL, download_archive
from anyo_rl.data.formats import read_amazon, read_minionerec, read_plain, read_recbole
from anyo_rl.data.movielens import read_ratings_csv, read_ratings_dat, read_u_data
from anyo_rl.data.schema import TEST, TRAIN, VALIDATION, DataError, Interactions
from anyo_rl.data.tables import PlainTable, Source, first_line, only
from anyo_rl.data.text import MAX_TITLE_CHARS

ML_100K = "ml-100k"
OFFICE = "office"
DATA_DIR_VARIABLE = "ANYO_RL_DATA"
_GIVEN_FILES = {TRAIN: "train.csv", VALIDATION: "valid.csv", TEST: "test.csv"}
_TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")
_ITEM_SUFFIXES = (*_TABLE_SUFFIXES, ".jsonl", ".jsonl.gz")
_FORMATS = (
    "ratings.dat + movies.dat, ratings.csv + movies.csv, u.data + u.item (MovieLens); *.inter + *.item (RecBole); "
    "*.csv + meta_*.jsonl (Amazon Reviews 2023); train.csv + valid.csv + test.csv (MiniOneRec); or a csv, tsv or "
    "parquet table with user_id, item_id, timestamp and an items file"
)


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Where named data sets lie: `data_dir`, else the environment's ANYO_RL_DATA, else ~/.cache/anyo_rl."""
    return Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or Path.home() / ".cache" / "anyo_rl").expanduser()


@dataclass(frozen=True)
class Archive:
    """A zip file that a data set can be downloaded as."""

    url: str = ML_100K_URL
    md5: str = ML_100K_MD5


def load_interactions(
    source: str | Path,
    *,
    data_dir: str | Path | None = None,
    items_path: str | Path | None = None,
    table: PlainTable | None = None,
    max_title_chars: int = MAX_TITLE_CHARS,
    archive: Archive = Archive(),
) -> Interactions:
    """Read, validate and clean an interaction log.

    The format is recognised by the names of the files: MovieLens (`ratings.dat`, `ratings.csv`, `u.data`), RecBole
    (`.inter`, `.item`), Amazon Reviews 2023 (csv and `meta_*.jsonl`), MiniOneRec (`train.csv`, `valid.csv`,
    `test.csv` with histories), and plain csv, tsv or parquet. What cleaning does is in `anyo_rl.data.clean`.

    Args:
        source: `ml-100k` (downloaded from its publisher where it is missing), `office`, another folder's name in the
            data folder, or a path to a folder or file (write `./office` for a folder of that name here).
        data_dir: the data folder; None for the environment's ANYO_RL_DATA, else ~/.cache/anyo_rl.
        items_path: the item file; None to look beside the log.
        table: the layout of a plain table; None for the usual one.
        max_title_chars: longer titles are cut at a word boundary.
        archive: where `ml-100k` comes from.

    Raises:
        DataError: whatever is wrong with the path or the data; the message says what to do.
    """
    path = _find(str(source), data_dir, archive)
    items = None if items_path is None else Path(items_path).expanduser()
    if items is not None and not items.is_file():
        raise DataError(f"{items}: no such item file: check items_path")
    return clean_source(_read(path, items, table or PlainTable()), _name(path), max_title_chars)


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _find(source: str, data_dir: str | Path | None, archive: Archive) -> Path:
    is_name = bool(source) and not any(mark in source for mark in ("/", os.sep, ".", "~"))
    named = data_folder(data_dir) / source
    if is_name and named.is_dir() and any(named.iterdir()):
        return named
    if source == ML_100K:
        return download_archive(archive.url, archive.md5, named)
    path = Path(source).expanduser()
    if source and source != OFFICE and path.exists():
        return path
    if is_name:
        raise DataError(
            f"{source!r}: found neither the folder {named} nor such a path here, expected {ML_100K!r} (downloaded "
            "when missing), a folder in the data folder, or a path: set ANYO_RL_DATA or data_dir, or check the name"
        )
    raise DataError(f"{source!r}: no such file or folder: check the path")


def _read(path: Path, items: Path | None, table: PlainTable) -> Source:
    folder = path if path.is_dir() else path.parent
    wanted = None if path.is_dir() else path.name

    def has(*names: str) -> bool:
        """Whether this format's log is asked for: the file itself, or any of a folder's."""
        return wanted in names if wanted else all((folder / name).is_file() for name in names)

    if has("ratings.dat"):
        return read_ratings_dat(folder / "ratings.dat", items or folder / "movies.dat")
    if has("u.data"):
        return read_u_data(folder / "u.data", items or folder / "u.item")
    plain = bool(table.columns or table.item_columns or table.separator)
    movies = items or folder / "movies.csv"
    if has("ratings.csv") and movies.is_file() and not plain and "movieId" in first_line(folder / "ratings.csv"):
        return read_ratings_csv(folder / "ratings.csv", movies)
    if wanted is None and (given := _given_files(folder)):
        inter, item = _optional(folder, ".inter"), items or _optional(folder, ".item")
        return read_minionerec(given, inter, item, table.columns)
    inters = sorted(folder.glob("*.inter")) if wanted is None else [path] if path.suffix == ".inter" else []
    if inters:
        inter = only(inters, folder, "log", lambda p: p.stem == folder.name)
        item = items or only(sorted(folder.glob("*.item")), folder, "item file", lambda p: p.stem == inter.stem)
        return read_recbole(inter, item, table.columns, table.item_columns)
    metas = (
        [items] if items else [p for p in sorted(folder.glob("meta_*")) if p.name.endswith((".jsonl", ".jsonl.gz"))]
    )
    logs = [path] if wanted else _logs(folder, items)
    if wanted is None and not logs:
        names = sorted(p.name for p in folder.iterdir())[:10]
        raise DataError(f"{folder}: found {names}, expected one of: {_FORMATS}")
    log = only(logs, folder, "log", lambda p: _name(p) in ("interactions", "ratings", folder.name))
    if log.name.endswith((".csv", ".csv.gz")) and "parent_asin" in first_line(log) and not plain and metas:
        stem = _name(log)
        return read_amazon(log, only(metas, folder, "item file", lambda p: _name(p) == f"meta_{stem}"), table.columns)
    return read_plain(log, items or _item_file(folder), table)


def _given_files(folder: Path) -> dict[str, Path]:
    """MiniOneRec's files, if the folder has them."""
    paths = {split: folder / name for split, name in _GIVEN_FILES.items() if (folder / name).is_file()}
    if TRAIN in paths and "history_item_id" in first_line(paths[TRAIN]):
        return paths
    return {}


def _optional(folder: Path, suffix: str) -> Path | None:
    paths = sorted(folder.glob(f"*{suffix}"))
    return only(paths, folder, suffix, lambda p: p.stem == folder.name) if paths else None


def _item_file(folder: Path) -> Path | None:
    names = [f"{stem}{suffix}" for stem in ("items", "item", "movies") for suffix in _ITEM_SUFFIXES]
    names += [p.name for p in sorted(folder.glob("*.item"))]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _logs(folder: Path, items: Path | None) -> list[Path]:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name.endswith(_TABLE_SUFFIXES)]
    return [p for p in files if _name(p) not in ("items", "item", "movies") and p != items]
