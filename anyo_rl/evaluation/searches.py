"""Searches beside one another: what each costs, and what it gains over a plain mixture that writes as much.

A row of a search is a mode `<search>-<n>` of its stage. Only such rows have costs, and none stands without them.
"""

import numpy as np
import polars as pl

from anyo_rl.evaluation.evaluator import Frames
from anyo_rl.evaluation.paired import paired_difference
from anyo_rl.evaluation.summary import COSTS, MAIN_METRIC, NODES, SECONDS, TOKENS, EqualTokens, Summary
from anyo_rl.metrics.intervals import Interval

MIXTURE = "mixture"
HEADER = ["Stage", "Search", "n", "Tokens", "Nodes", "ms", "NDCG@10", "Over the mixture", "of n"]


def search_mode(search: str, n: int) -> str:
    """The mode of a row; n is 0 where nothing is reasoned.

    >>> search_mode("step_beam", 8), split_mode("step_beam-8")
    ('step_beam-8', ('step_beam', 8))
    """
    return f"{search}-{n}"


def split_mode(mode: str) -> tuple[str, int]:
    """The search and its n."""
    search, _, n = mode.rpartition("-")
    return search, int(n)


def is_search(frame: pl.DataFrame) -> bool:
    """Whether answers are those of a search, with their costs."""
    return TOKENS in frame.columns


def costs_of(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """What each recommendation cost, by name; what nobody counted is left out."""
    known = [name for name in COSTS if name in frame.columns and not frame[name].null_count()]
    return {name: frame[name].to_numpy() for name in known}


def equal_tokens(frames: Frames, seed: int) -> dict[str, dict[str, EqualTokens]]:
    """What each search gains over the smallest plain mixture of its stage that writes as many tokens or more.

    A search that writes more than any mixture is set against none, and so is one that writes less than half of it.
    """
    found: dict[str, dict[str, EqualTokens]] = {}
    for stage, modes in frames.items():
        tokens = {mode: float(frame[TOKENS].mean()) for mode, frame in modes.items() if is_search(frame)}  # type: ignore[arg-type]
        mixtures = sorted((n, mode) for mode, n in tokens.items() if split_mode(mode)[0] == MIXTURE)
        for mode, n_tokens in tokens.items():
            against = next((other for n, other in mixtures if n >= n_tokens), None)
            if against is None or against == mode or tokens[against] > 2 * n_tokens:
                continue
            difference = paired_difference(modes[mode], modes[against], seed)
            found.setdefault(stage, {})[mode] = EqualTokens(against, difference)
    return found


def search_cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of searches; no cells where there are none."""
    body = []
    for stage, modes in summary.stages.items():
        searched = [(mode, metrics) for mode, metrics in modes.items() if TOKENS in metrics]
        for mode, metrics in sorted(searched, key=lambda one: one[1][TOKENS].mean):
            search, n = split_mode(mode)
            beside = summary.equal_tokens.get(stage, {}).get(mode)
            gain = None if beside is None else beside.metrics.get(MAIN_METRIC)
            body.append(
                [
                    *(stage, search, str(n), f"{metrics[TOKENS].mean:.0f}", _count(metrics.get(NODES))),
                    _count(metrics.get(SECONDS), 1000.0),
                    "–" if MAIN_METRIC not in metrics else metrics[MAIN_METRIC].text(),
                    "–" if gain is None else gain.text(signed=True),
                    "–" if beside is None else str(split_mode(beside.against)[1]),
                ]
            )
    return HEADER, body


def ahead(summary: Summary) -> list[str]:
    """In words, which searches are ahead of a mixture of as many tokens by more than chance, or that none is."""
    compared = [(stage, mode, one) for stage, modes in summary.equal_tokens.items() for mode, one in modes.items()]
    if not compared:
        return []
    better = []
    for stage, mode, one in compared:
        gain = one.metrics.get(MAIN_METRIC)
        if gain is not None and gain.low is not None and gain.low > 0 and split_mode(mode)[0] != MIXTURE:
            better.append(f"{stage} {mode} ({gain.text(signed=True)} over {one.against})")
    if not better:
        return ["No search is ahead of a plain mixture of as many tokens by more than chance."]
    return [
        f"Ahead of a plain mixture of as many tokens, intervals taken one by one (of {len(compared)} comparisons): "
        f"{'; '.join(better)}."
    ]


def curves(summary: Summary) -> dict[str, list[tuple[float, Interval]]]:
    """Search → points of tokens a recommendation and NDCG@10; stages are told apart where there are several."""
    found: dict[str, list[tuple[float, Interval]]] = {}
    stages = [stage for stage, modes in summary.stages.items() if any(TOKENS in one for one in modes.values())]
    for stage in stages:
        for mode, metrics in summary.stages[stage].items():
            if TOKENS in metrics and MAIN_METRIC in metrics:
                search = split_mode(mode)[0]
                name = search if len(stages) == 1 else f"{stage} {search}"
                found.setdefault(name, []).append((metrics[TOKENS].mean, metrics[MAIN_METRIC]))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def _count(value: Interval | None, scale: float = 1.0) -> str:
    return "–" if value is None else f"{value.mean * scale:,.0f}"
