"""Which paths a report shows, and what of each: read from the run's `paths/*.parquet`.

Tables of millions of paths are fine: keys and ranks are read for all, the rest only for the few that are shown.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import polars as pl

from anyo_rl.evaluation.stages import COMPARED, SFT
from anyo_rl.run.files import read_table, scan_table
from anyo_rl.run.settings import UsageError

BEFORE = SFT.name
AFTER = COMPARED  # the first that a run has is compared with BEFORE
KEYS = ("example_id", "sample_index", "policy", "split", "rank")
MODES = ("greedy", "mixture", "plain")  # a file `<stage>.<mode>.parquet` has the paths of one mode
MAX_TEXT, MAX_HISTORY, MAX_TOKENS = 300, 40, 600


def read_keys(run_dir: Path, split: str | None = None) -> tuple[pl.DataFrame, list[Path], list[str]]:
    """Keys and ranks of all paths of a run.

    Args:
        run_dir: the run folder.
        split: keep this split only, where the run has any path of it.

    Returns:
        A frame with the columns of KEYS, `mode` (empty where the file's name has none) and `file`, `row` (where the
        path is), one row a path: of a path that was written twice the last counts. Then the files that `file` counts
        in, and the names of those not readable.
    """
    files, unreadable, frames = [], [], []
    for file in sorted((run_dir / "paths").glob("**/*.parquet")):
        try:
            frame = read_table(file, KEYS)
            frame = frame.select(
                pl.col("example_id", "policy", "split").cast(pl.String), pl.col("sample_index", "rank").cast(pl.Int64)
            )
        except (UsageError, pl.exceptions.PolarsError, OSError):
            unreadable.append(file.name)
            continue
        files.append(file)
        mode = file.stem.rpartition(".")[2]
        place = {"file": pl.lit(len(files) - 1, pl.Int64), "mode": pl.lit(mode if mode in MODES else "")}
        frames.append(frame.with_row_index("row").with_columns(**place))
    if not frames:
        empty: dict[str, Any] = {"row": pl.UInt32} | dict.fromkeys(("sample_index", "rank", "file"), pl.Int64)
        empty |= dict.fromkeys(("example_id", "policy", "split", "mode"), pl.String)
        return pl.DataFrame(schema=empty), files, unreadable
    # The greedy path and the mixture's first sample are two paths with one sample index.
    key = ["example_id", "sample_index", "policy", "mode"]
    keys = pl.concat(frames).unique(key, keep="last", maintain_order=True)
    if split is not None and (keys["split"] == split).any():
        keys = keys.filter(pl.col("split") == split)
    return keys, files, unreadable


def after(keys: pl.DataFrame) -> str:
    """The policy whose paths are compared with those of BEFORE."""
    found = set(keys["policy"])
    return next((policy for policy in AFTER if policy in found), AFTER[0])


def choose_paths(keys: pl.DataFrame, limit: int = 200, seed: int = 0) -> pl.DataFrame:
    """At most `limit` paths: examples with the biggest gains and losses over BEFORE, and a seeded sample.

    Examples are kept whole as far as the limit goes: first one path of each policy (the greedy one where there is
    one), then further samples. A gain is measured by NDCG between these first paths of the two policies. The column
    `why` says how the example came in: `gain`, `loss` or `sample`.
    """
    keys = keys.sort(pl.col("mode") != "greedy", "sample_index", "mode")
    first = keys.unique(["example_id", "policy"], keep="first", maintain_order=True)
    n_examples = max(1, limit // max(1, first["policy"].n_unique()))
    ranks = {policy: first.filter(pl.col("policy") == policy) for policy in (BEFORE, after(keys))}
    pairs = (
        ranks[after(keys)].join(ranks[BEFORE], on="example_id", suffix="_before").drop_nulls(["rank", "rank_before"])
    )
    change = {
        example: 1 / math.log2(1 + max(after, 1)) - 1 / math.log2(1 + max(before, 1))
        for example, after, before in pairs.select("example_id", "rank", "rank_before").iter_rows()
    }
    by_change = sorted(change, key=lambda example: (change[example], example))
    why: dict[str, str] = {}
    for example in reversed(by_change[-max(1, n_examples // 4) :]):
        if change[example] > 0:
            why[example] = "gain"
    for example in by_change[: max(1, n_examples // 4)]:
        if change[example] < 0:
            why[example] = "loss"
    rest = sorted(set(keys["example_id"].drop_nulls()) - set(why))
    rest = random.Random(seed).sample(rest, min(len(rest), max(0, n_examples - len(why))))
    why |= dict.fromkeys(rest, "sample")
    order = pl.DataFrame(
        {"example_id": list(why), "why": list(why.values())}, schema={"example_id": pl.String, "why": pl.String}
    )
    chosen = keys.join(order.with_row_index("place"), on="example_id", maintain_order="left")
    nth = pl.int_range(pl.len()).over("example_id", "policy")
    return chosen.with_columns(nth=nth).sort("nth", "place", "policy").head(limit).sort("place", "nth", "policy")


def load_examples(run_dir: Path, keys: pl.DataFrame, files: list[Path], limit: int = 200) -> list[dict[str, Any]]:
    """The chosen paths, grouped by example, as plain JSON values with all text cut to a readable length.

    Tokens are there where the run folder has the tokenizer of the policy (or of another): they carry the log-probs.
    """
    chosen = choose_paths(keys, limit)
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for file in chosen["file"].unique().to_list():
        wanted = chosen.filter(pl.col("file") == file)["row"].to_list()
        frame = scan_table(files[file]).with_row_index("__row").filter(pl.col("__row").is_in(wanted)).collect()
        rows |= {(file, row["__row"]): row for row in frame.iter_rows(named=True)}
    tokenizers: dict[str, Any] = {}
    examples: dict[str, dict[str, Any]] = {}
    for example_id, file, row, why, mode in chosen.select("example_id", "file", "row", "why", "mode").iter_rows():
        path = rows[file, row]
        if example_id not in examples:
            history = [cut(title) for title in path.get("history") or []]
            examples[example_id] = {
                "id": example_id,
                "user": cut(path.get("user_id")),
                "why": why,
                "history": history[-MAX_HISTORY:],
                "earlier": max(0, len(history) - MAX_HISTORY),
                "target": cut(path.get("target_title") or path.get("target_id")),
                "paths": [],
            }
        policy = str(path["policy"])
        if policy not in tokenizers:
            tokenizers[policy] = _tokenizer(run_dir, policy)
        examples[example_id]["paths"].append(_path(path, mode, tokenizers[policy]))
    return list(examples.values())


def cut(text: Any, length: int = MAX_TEXT) -> str:
    """`text` on one line, cut to `length` characters with an ellipsis."""
    text = " ".join(str("" if text is None else text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def safe_json(value: Any) -> str:
    """JSON that can stand inside a `<script>` element: pure ASCII, no `<`, `>` or `&`, NaN as null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _path(row: dict[str, Any], mode: str, tokenizer: Any) -> dict[str, Any]:
    rewards = row.get("rewards")
    if isinstance(rewards, str):
        try:
            rewards = json.loads(rewards)
        except ValueError:
            rewards = None
    log_probs = list(row.get("token_log_probs") or [])[:MAX_TOKENS]
    token_ids = list(row.get("token_ids") or [])[:MAX_TOKENS]
    target = row.get("target_id")
    item = row.get("item_title") or row.get("item_id")
    return {
        "policy": str(row["policy"]),
        "sample": mode if mode and mode != "mixture" else f"sample {row.get('sample_index')}",
        "rank": row.get("rank"),
        "steps": [cut(step) for step in (row.get("steps") or [])[:50]],
        "values": row.get("step_values"),
        "item": None if item is None else cut(item),
        "hit": row.get("item_id") is not None and row.get("item_id") == target,
        "rewards": {cut(name, 60): value for name, value in rewards.items()} if isinstance(rewards, dict) else {},
        "tokens": token_texts(tokenizer, token_ids) if tokenizer is not None and log_probs else [],
        "log_probs": log_probs,
        "ranker": row.get("ranker"),
        "cap": row.get("cap"),
        "finish": row.get("finish_reason"),
        "completion": cut(row.get("completion"), 4000) if not row.get("steps") else None,
    }


def token_texts(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """The text that each token adds; a character spread over several tokens comes with its last."""
    texts, done = [], ""
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:end], skip_special_tokens=False)
        complete = text.startswith(done) and (not text.endswith("�") or end == len(token_ids))
        texts.append(text[len(done) :] if complete else "")
        done = text if complete else done
    return texts


def _tokenizer(run_dir: Path, policy: str) -> Any:
    from tokenizers import Tokenizer

    own = sorted((run_dir / policy).glob("**/tokenizer.json")) if policy.isidentifier() else []
    for file in [*own, *sorted(run_dir.glob("**/tokenizer.json"))]:
        try:
            return Tokenizer.from_file(str(file))
        except Exception:  # tokenizers raises no narrower one; without a tokenizer the tokens are boxes
            continue
    return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
