"""Sampling jobs in shards: killed at any moment they go on, and any number of processes may share the work.

A job is a folder as `anyo_rl.run.shards` has it. Its shards are paths of a part of the examples each, and `catalog/`
has the tree of the catalog, for all processes of a machine.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_table
from anyo_rl.run.settings import UsageError
from anyo_rl.run.shards import MANIFEST, JobError, Shards, hash_of, partition
from anyo_rl.sampling.paths import KEY, PATHS_SCHEMA, SampledPath, paths_table
from anyo_rl.sampling.protocol import Sampling


@dataclass(frozen=True)
class ShardedJob:
    """What a sampling job is.

    Attributes:
        folder: the job's folder, which may be shared by machines.
        sampling: how paths are sampled.
        policy: revision of the weights; written into each path.
        n_shards: parts that the work comes in. A kill costs at most the part that was under way.
        split: of the examples; written into each path.
        model: the teacher; written into each path.
        arguments: what paths depend on besides sampling: weights, ranking. Ready for JSON and without secrets, as
            `anyo_rl.run.folder.resolve` gives them.
        lease_s: a claim is void when it was not renewed for so long; more than a network folder may be behind.
        poll_s: how often others' shards are looked for.
    """

    folder: Path
    sampling: Sampling
    policy: str
    n_shards: int = 16
    split: str | None = None
    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lease_s: float = 300.0
    poll_s: float = 1.0


def run_shards(
    rows: Sequence[Row],
    job: ShardedJob,
    make_paths: Callable[[Sequence[Row]], list[SampledPath]],
    begin: Callable[[Iterable[Row]], None] | None = None,
) -> None:
    """Does what is left of a job, and returns when all of it is done, here or by others.

    Args:
        rows: one for each example, with an `example_id` of its own.
        job: what is asked for.
        make_paths: gets the rows of a shard and gives their paths, without `policy`, `split` and `model`. They must
            not depend on which rows come together: seeds belong to examples (`VllmSampler.sample` with `keys_B`).
        begin: gets, before the first shard is made, the rows of all shards that are not done: for what works ahead.

    Raises:
        JobError: the folder is of another job; `make_paths` gave other paths than `n_samples` of each example; or
            examples are not told apart by their ids.
        ValueError: a count is below 1.
    """
    n_shards, n_samples = job.n_shards, job.sampling.n
    if n_shards < 1 or n_samples < 1:
        raise UsageError(f"n_shards {n_shards}, n_samples {n_samples}: expected at least 1")
    rows_hash, ids = _hash_of_rows(rows)
    if len(set(ids)) < len(ids):
        raise JobError(f"{len(ids)} rows have {len(set(ids))} different example ids: expected one of its own for each")
    manifest = {
        "policy": job.policy,
        "n_samples": n_samples,
        "n_shards": n_shards,
        "n_rows": len(ids),
        "example_ids": hash_of(ids),
        "rows": rows_hash,
        "arguments": json.loads(json.dumps({**asdict(job.sampling), **job.arguments})),
    }
    shards, parts = Shards(job.folder, manifest, job.lease_s, job.poll_s), partition(len(rows), n_shards)
    shards.settle()

    def make(shard: int) -> pl.DataFrame:
        mine = slice(parts[shard].start, parts[shard].stop)
        paths = make_paths(rows[mine]) if parts[shard] else []
        whole = [replace(path, policy=job.policy, split=job.split, model=job.model) for path in paths]
        return _checked(whole, ids[mine], n_samples)

    def tell(left: Sequence[int]) -> None:
        if begin is not None:
            begin(rows[i] for shard in left for i in parts[shard])

    shards.work(make, tell)


def read_paths(folder: Path) -> pl.DataFrame:
    """The paths of a finished job in the order of its rows, after a check that each is there exactly once.

    Raises:
        JobError: shards are missing, or the paths are not those that the job was to make.
    """
    job = Shards.found_in(folder)
    if job is None:
        raise JobError(f"found no {folder / MANIFEST}: expected the folder of a sampling job")
    manifest, files, missing = job.manifest, job.files, job.missing()
    if missing:
        raise JobError(
            f"{len(missing)} of {len(files)} shards in {folder} are not done, such as {files[missing[0]].name}: start "
            "the job again"
        )
    shards = [read_table(file) for file in files]
    if any(shard.schema != PATHS_SCHEMA for shard in shards):
        raise JobError(f"shards in {folder} have other columns than the paths table: they are of another version")
    paths = pl.concat(shards)
    found = paths["example_id"].unique(maintain_order=True).to_list()
    whole = len(paths) == manifest["n_rows"] * manifest["n_samples"]
    one_each = not paths.select(KEY).is_duplicated().any()
    if not whole or not one_each or hash_of(found) != manifest["example_ids"]:
        raise JobError(
            f"{folder} holds {len(paths)} paths ({paths.select(KEY).n_unique()} different) of {len(found)} examples, "
            f"expected {manifest['n_samples']} of each of {manifest['n_rows']}: remove its shards and start again"
        )
    return paths


def _hash_of_rows(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """`_hash` of the list of their columns, of which there is never more than one, and their ids."""
    found = hashlib.sha256(b"[")
    ids: list[str] = []
    for row in rows:
        found.update(f"{', ' if ids else ''}{json.dumps(row.columns(), sort_keys=True)}".encode())
        ids.append(row.example_id)
    found.update(b"]")
    return found.hexdigest()[:32], ids


def _checked(paths: list[SampledPath], ids: list[str], n_samples: int) -> pl.DataFrame:
    """The paths of a shard as a table, in the order of its rows.

    Raises:
        JobError: they are not `n_samples` of each example.
    """
    expected = [(example, index) for example in ids for index in range(n_samples)]
    by_key = {(path.example_id, path.sample_index): path for path in paths}
    if len(paths) != len(expected) or by_key.keys() != set(expected):
        strange = [key for key in by_key if key not in set(expected)]
        lacking = [key for key in expected if key not in by_key]
        raise JobError(
            f"make_paths gave {len(paths)} paths for {len(ids)} rows, expected {n_samples} of each, numbered from 0: "
            f"{len(lacking)} lack, such as {lacking[:1]}, and {len(strange)} were not asked for, such as {strange[:1]}"
        )
    return paths_table([by_key[key] for key in expected])
