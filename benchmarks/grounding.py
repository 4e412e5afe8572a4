"""Grounding completions in the catalog by distance: seconds of ours against others, measured in turn in one run.

python benchmarks/grounding.py --peers cdist                        a few minutes on one core
python benchmarks/grounding.py --rows 4096 --items 1000000 --json grounding.json

Vectors are random, of length 1; popularity has a long tail. Times are the least of several runs that take turns.

- The bare product is that of the same rows and items, in tiles of the same size, and nothing is done with it: the
  least that any of these can take. Its ratio is ours / peer; that of the others is peer / ours.
- `torch.cdist` + sort holds all distances of a slice of the rows, and reweighs and sorts them.
- faiss (`pip install faiss-cpu`) finds the same top list by its flat index, without a rank of the target.

Results must agree: the same ranks, but for near ties that float32 distances of the peer can turn, and the same scores
of the top list within float32 noise.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import report

from anyo_rl.ranking.embedding.grounding import Found, Search
from anyo_rl.ranking.embedding.item_space import ItemSpace

GAMMA = 1.0

PROCESS = Path("/proc/self")  # where Linux tells the memory of this process

Top = tuple[torch.Tensor, torch.Tensor]  # ranks (B,) and the best scores (B, K)


def seconds(
    repeats: int, clock: Callable[[], float], device: torch.device, **runs: Callable[[], Any]
) -> dict[str, tuple[float, Any]]:
    """Least time of each run in several rounds, and what the last one gave: rounds see the same busy machine."""
    found = {name: (float("inf"), None) for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            result = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[name] = (min(found[name][0], clock() - start), result)
    return found


def extra_gigabytes(run: Callable[[], Any]) -> float | None:
    """The most main memory that was in use during a run beyond what was in use before it; Linux only."""
    if not (PROCESS / "clear_refs").exists():
        return None

    def kilobytes(name: str) -> int:
        lines = (PROCESS / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    (PROCESS / "clear_refs").write_text("5")  # forgets the highest use so far
    before = kilobytes("VmRSS")
    run()
    return (kilobytes("VmHWM") - before) * 1024 / 1e9


def bare_product(rows_B_D: torch.Tensor, items_N_D: torch.Tensor, row_size: int, chunk_size: int) -> None:
    """The product, tile by tile into one buffer."""
    buffer = torch.empty(row_size * chunk_size, device=rows_B_D.device)
    for items in items_N_D.split(chunk_size):
        for rows in rows_B_D.split(row_size):
            torch.mm(rows, items.T, out=buffer[: len(rows) * len(items)].view(len(rows), len(items)))


def cdist_and_sort(
    rows_B_D: torch.Tensor,
    items_N_D: torch.Tensor,
    targets_B: torch.Tensor,
    k: int,
    size: int,
    counts_N: torch.Tensor | None = None,
) -> Top:
    """Ranks and the k least scores, from whole rows of distances, `size` at a time; D̃ where there are counts."""
    ranks, tops = [], []
    for rows, targets in zip(rows_B_D.split(size), targets_B.split(size), strict=True):
        score = torch.cdist(rows, items_N_D)
        if counts_N is not None:
            share_N = (counts_N - counts_N.min()) / (counts_N.max() - counts_N.min())
            low, high = score.amin(1, keepdim=True), score.amax(1, keepdim=True)
            score = (score - low) / (high - low) * (1 + share_N) ** -GAMMA
        ranks.append((score <= score.gather(1, targets[:, None])).sum(1))
        tops.append(score.sort(dim=1).values[:, :k].clone())
    return torch.cat(ranks), torch.cat(tops)


def scores_agree(found: Found, score_B_K: torch.Tensor) -> bool:
    return torch.allclose(found.scores_B_K.float(), score_B_K, rtol=1e-3, atol=1e-4)


def agree(found: Found, peer: Top, n_items: int) -> bool:
    """Whether float32 ranks are ours within one item in ten thousand, and top scores within float32 noise."""
    off_B = (found.n_near_B - peer[0]).abs()
    return bool((off_B <= max(1, n_items // 10_000)).all()) and scores_agree(found, peer[1])


def faiss_search(items_N_D: torch.Tensor, n_threads: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A search for the k least distances by faiss, on the CPU."""
    import faiss

    faiss.omp_set_num_threads(n_threads)
    index = faiss.IndexFlatL2(items_N_D.shape[1])
    index.add(np.ascontiguousarray(items_N_D.cpu().numpy()))

    def search(rows_B_D: torch.Tensor, k: int) -> torch.Tensor:
        squares_B_K, _ = index.search(np.ascontiguousarray(rows_B_D.cpu().numpy()), k)
        return torch.from_numpy(squares_B_K).clamp_min(0).sqrt()

    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="completions")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--slice", type=int, default=64, help="rows that torch.cdist takes at once")
    parser.add_argument("--peers", nargs="*", choices=["cdist", "faiss"], default=["cdist", "faiss"])
    parser.add_argument("--repeats", type=int, default=3, help="rounds of ours and the product; the others take one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, where others use it as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    clock = time.process_time if args.cpu_time else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    items = torch.nn.functional.normalize(torch.randn(args.items, args.dim, generator=generator), dim=1).to(device)
    written = torch.nn.functional.normalize(torch.randn(args.rows, args.dim, generator=generator), dim=1).to(device)
    targets = torch.randint(0, args.items, (args.rows,), generator=generator).to(device)
    counts = (1 / torch.rand(args.items, generator=generator).clamp_min(1e-4)).to(device)

    space = ItemSpace(items)
    bare_product(written[:64], items[:4096], space.row_size, space.chunk_size)  # the first product starts threads

    def plain_search() -> Found:
        return Search(space, written, targets).among_all(args.top_k)

    def reweighted_search() -> Found:
        search = Search(space, written, targets, weights=lambda part: counts[None, part], gamma=GAMMA)
        return search.among_all(args.top_k)

    extra_gb = extra_gigabytes(reweighted_search)
    found = seconds(
        args.repeats,
        clock,
        device,
        ours=plain_search,
        product=lambda: bare_product(written, items, space.row_size, space.chunk_size),
        reweighted=reweighted_search,
    )
    (ours, plain), (product, _), (ours_reweighted, reweighted) = found["ours"], found["product"], found["reweighted"]

    def row(name: str, ours: float, peer: float, ratio: float, agree: bool | None) -> dict[str, Any]:
        return {"name": name, "ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ratio, 2), "agree": agree}

    rows = [
        row("ours / bare product", ours, product, ours / product, None),
        row("ours, reweighted / bare product", ours_reweighted, product, ours_reweighted / product, None),
    ]
    if "cdist" in args.peers:
        problem = (written, items, targets, args.top_k, args.slice)
        peers = seconds(
            1,
            clock,
            device,
            plain=lambda: cdist_and_sort(*problem),
            reweighted=lambda: cdist_and_sort(*problem, counts),
        )
        for name, us, result in (("plain", ours, plain), ("reweighted", ours_reweighted, reweighted)):
            peer, top = peers[name]
            rows.append(row(f"cdist + sort / ours, {name}", us, peer, peer / us, agree(result, top, args.items)))
    if "faiss" in args.peers:
        search = faiss_search(items, args.threads)
        peer, score = seconds(1, clock, device, faiss=lambda: search(written, args.top_k))["faiss"]
        rows.append(row("faiss flat / ours", ours, peer, peer / ours, scores_agree(plain, score.to(device))))
    unit = "seconds of the processor" if args.cpu_time else "seconds"
    print(f"{args.rows:,} rows, {args.items:,} items of {args.dim}, top {args.top_k}, {args.threads} threads, {unit}")
    report(rows, args.json)
    if extra_gb is not None:
        print(f"reweighting took {extra_gb:.2f} GB of main memory beyond what was in use")
    wrong = [one["name"] for one in rows if one["agree"] is False]
    assert not wrong, f"results differ: {wrong}"


if __name__ == "__main__":
    main()
