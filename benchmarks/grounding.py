"""Grounding completions in the catalog by distance: seconds of ours against others, measured in turn in one run.

python benchmarks/grounding.py                                      a minute on two cores
python benchmarks/grounding.py --rows 4096 --items 1000000 --json grounding.json

The bare product is that of the same rows and items in the same tiles, and nothing is done with it: the least that any
of these can take. `torch.cdist` + sort holds all distances of a slice of the rows (`--slice`), and faiss (`pip install
faiss-cpu`) finds the same top list by its flat index, without a rank of the target: both see all rows.
Results must agree: the same ranks, and the same distances of the top list, within float32 noise.
"""

import argparse
import importlib.util
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from report import report

from anyo_rl.ranking.grounding import Found, ItemSpace


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def bare_product(rows_B_D: torch.Tensor, items_N_D: torch.Tensor, row_size: int, chunk_size: int) -> None:
    """The product, tile by tile into one buffer."""
    buffer = torch.empty(row_size * chunk_size, device=rows_B_D.device)
    for items in items_N_D.split(chunk_size):
        for rows in rows_B_D.split(row_size):
            torch.mm(rows, items.T, out=buffer[: len(rows) * len(items)].view(len(rows), len(items)))


def cdist_and_sort(
    rows_B_D: torch.Tensor, items_N_D: torch.Tensor, targets_B: torch.Tensor, k: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks and the k least distances, from whole rows of distances."""
    ranks, tops = [], []
    for rows, targets in zip(rows_B_D.split(size), targets_B.split(size), strict=True):
        distance = torch.cdist(rows, items_N_D)
        ranks.append((distance <= distance.gather(1, targets[:, None])).sum(1))
        tops.append(distance.sort(dim=1).values[:, :k].clone())
    return torch.cat(ranks), torch.cat(tops)


def ranks_agree(found: Found, ranks_B: torch.Tensor, n_items: int) -> bool:
    """Whether float32 ranks are ours but for near ties: within one item in ten thousand."""
    return bool(((found.rivals_B + 1 - ranks_B).abs() <= max(1, n_items // 10_000)).all())


def tops_agree(found: Found, distance_B_K: torch.Tensor) -> bool:
    """Whether the least distances are ours, within what float32 squares are off by."""
    return torch.allclose(found.scores_B_K.square(), distance_B_K.double().square(), rtol=1e-3, atol=1e-4)


def main() -> None:
    """Measures each in turn and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--slice", type=int, default=128, help="rows that torch.cdist takes at once")
    parser.add_argument("--peers", default="cdist,faiss", help="which of cdist,faiss to measure besides the product")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize
    items = normal(torch.randn(args.items, args.dim, generator=generator), dim=1).to(device)
    written = normal(torch.randn(args.rows, args.dim, generator=generator), dim=1).to(device)
    targets = torch.randint(0, args.items, (args.rows,), generator=generator).to(device)
    # A long tail of popularity: most items near 0.
    weight = torch.rand(args.items, generator=generator, dtype=torch.float64) ** 8

    plain, weighed = ItemSpace(items), ItemSpace(items, weight_N=weight, gamma=1.0)
    tile = (plain.items.row_size, plain.items.chunk_size)
    bare_product(written[:64], items[:4096], *tile)  # the first product starts threads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours, found = timed(lambda: plain.search(written, targets, args.top_k), device)
    ours_weighed, _ = timed(lambda: weighed.search(written, targets, args.top_k), device)
    extra_gb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
    bare, _ = timed(lambda: bare_product(written, items, *tile), device)

    def row(name: str, ours: float, peer: float, ratio: float, agree: bool | None) -> dict[str, Any]:
        return {"name": name, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ratio, 2), "agree": agree}

    rows = [
        row("time over a bare product", ours, bare, ours / bare, None),
        row("time over a bare product, reweighted", ours_weighed, bare, ours_weighed / bare, None),
    ]
    peers = args.peers.split(",")
    if "cdist" in peers:
        seconds, (ranks, top) = timed(lambda: cdist_and_sort(written, items, targets, args.top_k, args.slice), device)
        agree = ranks_agree(found, ranks, args.items) and tops_agree(found, top)
        rows.append(row("times faster than cdist + sort", ours, seconds, seconds / ours, agree))
    if "faiss" in peers and importlib.util.find_spec("faiss") is not None:
        import faiss

        index = faiss.IndexFlatL2(args.dim)
        index.add(np.ascontiguousarray(items.cpu().numpy()))
        queries = np.ascontiguousarray(written.cpu().numpy())
        seconds, (squares, _) = timed(lambda: index.search(queries, args.top_k), device)
        agree = tops_agree(found, torch.from_numpy(squares).clamp_min(0).sqrt().to(device))
        rows.append(row("times faster than faiss flat", ours, seconds, seconds / ours, agree))
    report(rows, args.json)
    print(f"{args.rows:,} rows, {args.items:,} items of {args.dim}; ours took {extra_gb:.2f} GB beyond what was there")
    wrong = [one["name"] for one in rows if one["agree"] is False]
    assert not wrong, f"results differ from {wrong}"


if __name__ == "__main__":
    main()
