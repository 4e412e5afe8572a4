"""The teacher cache: what a teacher answers to each training history, on disk, for any number of students.

A cache is a folder of shards (`anyo_rl.run.shards`):

    job.json                                 what it is made of: a folder belongs to one teacher and one data set
    shard-00002-of-00007.top_items.npy       (R, K) int32 item indices, best first, -1 where there are fewer
    shard-00002-of-00007.top_log_probs.npy   (R, K) float32, -inf where there is no item
    shard-00002-of-00007.states.npy          (R, D) float16, decision states, of teachers that have them
    shard-00002-of-00007.reasoning_vectors.npy   (R, D) float16, a vector of each reasoning's text
    shard-00002-of-00007.parquet             a row for each history; it comes last, and with it the shard is done
    card.json                                comes last of all, and with it the cache is done

It is written shard by shard and read through memory maps, never as a whole:

    cache = TeacherCache.open(Path("runs/office/cache"), task)
    cache.user_B, cache.position_B  # whose history, and how long it is
    cache.top_items_B_K[rows], cache.top_log_probs_B_K[rows]
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.data.task import Task
from anyo_rl.evidence.candidates import Items
from anyo_rl.run.files import read_json, read_table, readable, scan_table, whole_file, write_first
from anyo_rl.run.settings import UsageError
from anyo_rl.run.shards import Shards, hash_of, partition

CARD = "card.json"
DATA = ("items", "events", "targets")  # parts of a task's fingerprint that every cache depends on
SHOWN = ("histories",)  # and those that read prompts besides
USER, POSITION, RANK, REASONING = "user", "position", "rank", "reasoning"
TOP_ITEMS, TOP_LOG_PROBS, STATES, VECTORS = "top_items", "top_log_probs", "states", "reasoning_vectors"
DTYPES = {TOP_ITEMS: np.int32, TOP_LOG_PROBS: np.float32, STATES: np.float16, VECTORS: np.float16}
ROW_BYTES = 12  # of user, position and rank
ROWS_AT_ONCE = 2_000  # histories of a shard, unless there were too many shards: what a kill costs at most
MOST_SHARDS = 200  # each array of each is an open file


@dataclass(frozen=True)
class Card:
    """What a cache is made of: with any of it changed it is another cache.

    Attributes:
        source: who answers: `evidence`, the name of a baseline, or `teacher`.
        top_k: items kept of each answer, K.
        weights: hash of what the source learned, where that is in files; `None` where `settings` tell it all.
        data: parts of the task's fingerprint, by name.
        temperature: that scores were divided by before the softmax; 1 for sources of probabilities.
        settings: whatever else the answers depend on, ready for JSON.
        state_dim: numbers of a decision state; 0 where there is none.
        vector_dim: numbers of a reasoning's vector; 0 where there is none.
        text_bytes: of a reasoning's text, at most; 0 where there is none.
    """

    source: str
    top_k: int
    weights: str | None
    data: Mapping[str, str]
    temperature: float = 1.0
    settings: Mapping[str, object] = field(default_factory=dict)
    state_dim: int = 0
    vector_dim: int = 0
    text_bytes: int = 0

    @property
    def widths(self) -> dict[str, int]:
        """Name of an array → numbers in a row of it."""
        found = {TOP_ITEMS: self.top_k, TOP_LOG_PROBS: self.top_k, STATES: self.state_dim, VECTORS: self.vector_dim}
        return {name: width for name, width in found.items() if width}

    def bytes_of(self, n_rows: int) -> dict[str, int]:
        """What a cache of so many histories takes: name of a part → bytes; of texts at most so many."""
        arrays = {name: n_rows * width * np.dtype(DTYPES[name]).itemsize for name, width in self.widths.items()}
        rows = {"rows": n_rows * ROW_BYTES}
        return arrays | rows | ({REASONING: n_rows * self.text_bytes} if self.text_bytes else {})

    def told(self, n_rows: int) -> str:
        """The same in a line."""
        parts = self.bytes_of(n_rows)
        shown = ", ".join(f"{name} {n / 1e6:,.1f}" for name, n in parts.items())
        most = "at most " if self.text_bytes else ""
        return (
            f"{n_rows:,} histories, {self.top_k} items each, of {self.source}: {most}{sum(parts.values()) / 1e6:,.1f} "
            f"MB ({shown}) in {n_shards(n_rows)} shards"
        )


@dataclass(frozen=True)
class Labels:
    """What a source answers to R histories.

    Attributes:
        items_R_K: int32 item indices, best first, `NONE` at the end of short rows.
        log_probs_R_K: float32, -inf where there is no item.
        ranks_R: 1-based rank of the item really chosen, among the whole catalog.
        states_R_D: float16 decision states; of a mixture their mean.
        reasonings: their texts; of a mixture the first path's.
        vectors_R_D: float16 vectors of the reasonings; of a mixture their mean.
    """

    items_R_K: Items
    log_probs_R_K: NDArray[np.float32]
    ranks_R: NDArray[np.integer]
    states_R_D: NDArray[np.float16] | None = None
    reasonings: list[str] | None = None
    vectors_R_D: NDArray[np.float16] | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By the names that they have on disk."""
        found = {
            TOP_ITEMS: self.items_R_K,
            TOP_LOG_PROBS: self.log_probs_R_K,
            STATES: self.states_R_D,
            VECTORS: self.vectors_R_D,
        }
        return {name: array for name, array in found.items() if array is not None}


def data_of(task: Task, shown: bool = False) -> dict[str, str]:
    """What tells the data of a cache from other data.

    Args:
        task: the data.
        shown: whether the answers depend on how histories are shown in prompts.
    """
    names = (*DATA, *(SHOWN if shown else ()))
    return {name: task.fingerprint[name] for name in names} | {"mask_history": str(task.args.mask_history).lower()}


def n_shards(n_rows: int) -> int:
    """In how many shards a cache comes."""
    return min(MOST_SHARDS, max(1, -(-n_rows // ROWS_AT_ONCE)))


def write_cache(
    folder: Path,
    card: Card,
    histories: pl.DataFrame,
    label: Callable[[pl.DataFrame], Labels],
    lease_s: float = 300.0,
) -> None:
    """Writes what is left of a cache, and returns when all of it is there; several processes may write one.

    Args:
        folder: the cache.
        card: what it is made of.
        histories: a row for each, as `anyo_rl.data.sequences.training_positions` gives them, in any order.
        label: gets some of these rows and gives the answers to them, the same whichever come together.
        lease_s: see `Shards`.

    Raises:
        JobError: the folder is of another teacher, other data or other settings; says which.
        ValueError: answers are not of the shapes that the card tells.
    """
    n = n_shards(len(histories))
    manifest = {
        "n_shards": n,
        "n_rows": len(histories),
        "example_ids": hash_of(histories[EXAMPLE_ID].to_list()),
        "rows": hash_of([histories[USER].to_list(), histories[POSITION].to_list()]),
        "arguments": json.loads(json.dumps(asdict(card))),
    }
    shards, parts = Shards(folder, manifest, lease_s), partition(len(histories), n)
    shards.settle()

    def make(shard: int) -> pl.DataFrame:
        rows = histories[parts[shard].start : parts[shard].stop]
        labels = label(rows)
        _check(labels, card, len(rows))
        for name, array in labels.arrays.items():
            with whole_file(array_file(shards.files[shard], name)) as opened:
                np.save(opened, np.ascontiguousarray(array, dtype=DTYPES[name]), allow_pickle=False)
        return rows.select(EXAMPLE_ID, USER, POSITION).with_columns(
            pl.Series(RANK, labels.ranks_R, dtype=pl.Int32),
            pl.Series(REASONING, labels.reasonings or [None] * len(rows), dtype=pl.String),
        )

    shards.work(make)
    write_first(folder / CARD, json.dumps(asdict(card) | {"n_rows": len(histories)}, indent=2))


def array_file(shard: Path, name: str) -> Path:
    """Where an array of a shard is."""
    return shard.with_suffix(f".{name}.npy")


def _check(labels: Labels, card: Card, n_rows: int) -> None:
    found = {name: array.shape for name, array in labels.arrays.items()}
    expected = {name: (n_rows, width) for name, width in card.widths.items()}
    if found != expected:
        raise ValueError(f"the answers to {n_rows} histories have shapes {found}, expected {expected}")
    for name in (STATES, VECTORS):
        if name in found and not np.isfinite(labels.arrays[name]).all():
            raise UsageError(f"{name} have numbers that float16 does not hold (65,504 at most): leave them out")


class Pieces:
    """Arrays of the same width one after another, as if they were one; read-only, and only what is asked for is read.

    Args:
        parts: (R, …) each, memory maps.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape: tuple[int, ...] = (int(self.ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Some rows, in memory."""
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        places = np.asarray(rows, dtype=np.int64)
        if places.ndim != 1 or (places.size and (places.min() < 0 or places.max() >= len(self))):
            # -1 stands for a history that is not here, and never for the last one
            raise IndexError(f"expected row numbers 0 to {len(self) - 1} in one dimension")
        found = np.empty((len(places), *self.shape[1:]), dtype=self.dtype)
        of_part = np.searchsorted(self.ends, places, side="right")
        for number in np.unique(of_part):
            at = of_part == number
            found[at] = self.parts[number][places[at] - (self.ends[number - 1] if number else 0)]
        return found


@dataclass(frozen=True)
class TeacherCache:
    """A finished cache, opened for reading.

    Attributes:
        folder: where it is.
        card: what it is made of.
        user_B: int32, number of each row's user in `anyo_rl.data.sequences.sequences_by_user`.
        position_B: int32, where the target of each row stands in that sequence: the history is all before it.
        rank_B: int32, 1-based rank that the teacher gives to it.
        top_items_B_K: int32 item indices, best first, -1 where there are fewer; indexed by rows.
        top_log_probs_B_K: float32, -inf where there is no item.
        states_B_D: float16 decision states, if there are any.
        reasoning_vectors_B_D: float16 vectors of the reasonings, if there are any.
    """

    folder: Path
    card: Card
    user_B: NDArray[np.int32]
    position_B: NDArray[np.int32]
    rank_B: NDArray[np.int32]
    top_items_B_K: Pieces
    top_log_probs_B_K: Pieces
    states_B_D: Pieces | None
    reasoning_vectors_B_D: Pieces | None

    @classmethod
    def open(cls, folder: Path, task: Task) -> "TeacherCache":
        """Maps a finished cache into memory.

        Args:
            folder: written by `recipes/cache_teacher.py`.
            task: the data that students learn from.

        Raises:
            UsageError: there is none, it is not finished, it is damaged, or of other data.
        """
        shards = Shards.found_in(folder)
        if shards is None:
            raise UsageError(f"found no teacher cache in {folder}: run recipes/cache_teacher.py")
        missing = shards.missing()
        if missing or not (folder / CARD).is_file():
            raise UsageError(
                f"the teacher cache in {folder} is not finished, {len(missing)} of {len(shards.files)} shards lack: "
                "start its command again"
            )
        with readable(folder / CARD):
            raw = read_json(folder / CARD)
            card = Card(**{one.name: raw[one.name] for one in fields(Card)})
            mine = data_of(task, shown=set(SHOWN) <= set(card.data))
            changed = [name for name in mine if card.data[name] != mine[name]]
        if changed:
            raise UsageError(
                f"the teacher cache in {folder} was made of other {', '.join(changed)}: make it of this data"
            )
        tables = [read_table(file, [USER, POSITION, RANK]) for file in shards.files]
        rows = pl.concat(tables)
        arrays = {}
        for name, width in card.widths.items():
            parts = []
            for file, table in zip(shards.files, tables, strict=True):
                parts.append(_mapped(array_file(file, name), (len(table), width)))
            arrays[name] = Pieces(parts)
        return cls(
            folder=folder,
            card=card,
            user_B=rows[USER].to_numpy(),
            position_B=rows[POSITION].to_numpy(),
            rank_B=rows[RANK].to_numpy(),
            top_items_B_K=arrays[TOP_ITEMS],
            top_log_probs_B_K=arrays[TOP_LOG_PROBS],
            states_B_D=arrays.get(STATES),
            reasoning_vectors_B_D=arrays.get(VECTORS),
        )

    def __len__(self) -> int:
        """Number of histories."""
        return len(self.user_B)

    def table(self) -> pl.LazyFrame:
        """A row for each history, in order, with its `example_id` and its `reasoning` where there is one."""
        job = Shards.found_in(self.folder)
        assert job is not None, "it was found when the cache was opened"
        return pl.concat([scan_table(file) for file in job.files])


def _mapped(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """An array of a shard.

    Raises:
        UsageError: it is not there, or damaged.
    """
    with readable(file, "remove the shard's files, and the cache's command makes them again"):
        if not file.is_file():
            raise ValueError("it is not there")
        found: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        if found.shape != shape:
            raise ValueError(f"found an array of shape {found.shape}, expected {shape}")
    return found
