"""The report's plots, each a small inline SVG.

Drawn by matplotlib in marker colours, which are then replaced by the CSS variables of the page: one drawing serves
light and dark. Text stays text, in the font of the page, so a plot weighs a few kB and can be searched.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, RULE, ACCENT, SOFT = "#100001", "#100002", "#100003", "#100004", "#100005"
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", SOFT: "--accent-soft"}
COLOURS = {"ink": "#1c1b1a", "muted": "#6f6b66", "rule": "#e6e2dc", "accent": "#0b6e6e", "accent-soft": "#b9dcda"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "anyo-rl",  # the same run gives the same file
    "text.parse_math": False,  # a name with dollars is a name
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.solid_capstyle": "round",
}
WIDTH, HEIGHT = 4.7, 2.7  # inches: about a phone's width, so that text is readable there without scaling
MAX_POINTS = 400


@dataclass
class Plot:
    """A plot of the page; `svg` is made here and is safe to insert."""

    title: str
    note: str
    svg: str


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    name: str,
    ylabel: str,
    smooth: bool,
    xlabel: str = "step",
) -> str:
    """Values over steps, one line a series; the last series has the accent.

    Args:
        series: label → (steps, values), of equal length.
        name: unique on the page; prefixes the SVG's ids.
        ylabel: what the values are.
        smooth: draw the values faint and their running mean over them.
        xlabel: what is counted; every whole number has its tick where there are few.
    """
    with _figure(name) as (axes, done):
        styles, markers = ["-", (0, (4, 2)), (0, (1, 1.5))], "os^Dv"
        for place, (label, (steps, values)) in enumerate(series.items()):
            last = place == len(series) - 1
            colour = ACCENT if last else MUTED
            x, y = _thin(np.asarray(steps, float), np.asarray(values, float))
            if smooth and len(y) >= 8:
                axes.plot(x, y, color=SOFT if last else RULE, linewidth=0.9)
                y = running_mean(y, max(3, len(y) // 12))
            marker = markers[place % len(markers)] if len(x) <= 25 and not smooth else None
            style = "-" if last else styles[place % len(styles)]
            axes.plot(x, y, color=colour, linewidth=1.7, linestyle=style, marker=marker, markersize=3, label=label)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.margins(x=0.02, y=0.1)
        axes.locator_params(axis="x", integer=True)
        if len(series) > 1:
            axes.legend(loc="best")
    return done[0]


def cost_plot(
    series: Mapping[str, Sequence[tuple[float, float]]],
    name: str,
    xlabel: str,
    ylabel: str,
    oracle: float | None = None,
) -> str:
    """Points of cost and value, joined where a series has several; each series is named beside its last point.

    Args:
        series: label → points, by cost; the first has the accent.
        name: unique on the page.
        xlabel: of the cost.
        ylabel: of the value.
        oracle: the best that anyone can reach, as a line.
    """
    with _figure(name, height=1.4 * HEIGHT) as (axes, done):
        if oracle is not None:
            axes.axhline(oracle, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
            axes.annotate("oracle", (0, oracle), xytext=(4, 4), textcoords="offset points", fontsize=7.5, color=MUTED)
        for place, (label, points) in enumerate(series.items()):
            x, y = zip(*points, strict=True)
            colour = MUTED if place else ACCENT
            axes.plot(x, y, color=colour, linewidth=1.3, marker="os^DvPX*<"[place % 9], markersize=4.5)
            axes.annotate(
                label,
                (x[-1], y[-1]),
                xytext=(6, (-2, 5, -9)[place % 3]),
                textcoords="offset points",
                fontsize=7.5,
                color=colour,
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.margins(x=0.22, y=0.1)
        axes.set_xlim(left=0)
    return done[0]


def interval_plot(
    labels: Sequence[str],
    means: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    accents: Sequence[bool],
    name: str,
    oracle: float | None = None,
) -> str:
    """A forest plot of NDCG@10: a dot with its interval for each label, the first on top.

    Args:
        labels: of the rows.
        means: of the rows.
        lows: where their intervals begin; `None` for none.
        highs: where they end.
        accents: which rows stand out.
        name: unique on the page.
        oracle: the best that anyone can reach, as a line.
    """
    with _figure(name, height=_rows_height(len(labels))) as (axes, done):
        if oracle is not None:
            axes.axvline(oracle, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
            axes.annotate(
                f"oracle {oracle:.3f}",
                (oracle, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=MUTED,
            )
        for y, (mean, low, high, accent) in enumerate(zip(means, lows, highs, accents, strict=True)):
            colour = ACCENT if accent else MUTED
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=colour, linewidth=2.2, alpha=0.55)
            axes.plot([mean], [y], "o", color=colour, markersize=5.5)
            axes.annotate(
                f"{mean:.3f}",
                (max(mean, mean if high is None else high), y),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK if accent else MUTED,
            )
        _label_rows(axes, labels, accents)
        axes.set_xlabel("NDCG@10")
        ends = [*means, *(high for high in highs if high is not None), oracle or 0.0, 1e-6]
        axes.set_xlim(0, 1.18 * max(ends))
    return done[0]


def bar_plot(labels: Sequence[str], shares: Sequence[float], accents: Sequence[bool], name: str, xlabel: str) -> str:
    """Horizontal bars of shares in [0, 1], the first on top, written as percentages."""
    with _figure(name, height=_rows_height(len(labels))) as (axes, done):
        for y, (share, accent) in enumerate(zip(shares, accents, strict=True)):
            axes.barh(y, 100 * share, height=0.52, color=ACCENT if accent else MUTED, alpha=1.0 if accent else 0.5)
            axes.annotate(
                f"{100 * share:.1f}%",
                (100 * share, y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK if accent else MUTED,
            )
        _label_rows(axes, labels, accents)
        axes.set_xlabel(xlabel)
        axes.set_xlim(0, 112 if max(shares, default=0) <= 1 else 115 * max(shares))
        axes.set_xticks([0, 25, 50, 75, 100])
    return done[0]


def rank_counts(ranks: np.ndarray, n_bins: int) -> np.ndarray:
    """Share of ranks in [1, 2), [2, 4), [4, 8), …; the last bin takes all beyond."""
    bins = np.minimum(np.floor(np.log2(np.maximum(ranks, 1))).astype(int), n_bins - 1)
    return np.bincount(bins, minlength=n_bins) / max(len(ranks), 1)


def rank_plot(ranks: Mapping[str, np.ndarray], name: str) -> str:
    """Histogram of ranks in bins that double: the last series is filled, those before it are outlines."""
    top = max((int(values.max()) for values in ranks.values() if len(values)), default=1)
    n_bins = int(np.floor(np.log2(max(top, 1)))) + 1
    with _figure(name) as (axes, done):
        for place, (label, values) in enumerate(ranks.items()):
            shares = 100 * rank_counts(values, n_bins)
            if place == len(ranks) - 1:
                axes.stairs(shares, np.arange(n_bins + 1), fill=True, color=SOFT)
                axes.stairs(shares, np.arange(n_bins + 1), color=ACCENT, linewidth=1.4, label=label)
            else:
                axes.stairs(
                    shares,
                    np.arange(n_bins + 1),
                    color=MUTED,
                    linewidth=1.4,
                    linestyle=(0, (3, 1.5)),
                    label=label,
                    zorder=3,
                )
        axes.set_xticks(range(n_bins + 1), [_short(2**power) for power in range(n_bins + 1)])
        axes.set_xlabel("rank of the target")
        axes.set_ylabel("% of paths")
        axes.set_xlim(0, n_bins)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right")
    return done[0]


def small_plot(steps: Sequence[float], values: Sequence[float], name: str) -> str:
    """One small multiple: a line with no labels but its ends."""
    with _figure(name, width=2.3, height=1.15) as (axes, done):
        x, y = _thin(np.asarray(steps, float), np.asarray(values, float))
        axes.plot(x, y, color=SOFT if len(y) >= 8 else ACCENT, linewidth=0.9)
        if len(y) >= 8:
            axes.plot(x, running_mean(y, max(3, len(y) // 12)), color=ACCENT, linewidth=1.5)
        axes.locator_params(axis="y", nbins=3)
        axes.locator_params(axis="x", nbins=3)
        axes.tick_params(labelsize=7)
        axes.margins(x=0.02, y=0.12)
    return done[0]


def standalone(svg: str) -> str:
    """A plot as a file of its own, with the colours of a light page."""
    for variable, colour in COLOURS.items():
        svg = svg.replace(f"var(--{variable})", colour)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background: white" ', 1)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, over fewer at the ends (so that the ends are not pulled to zero)."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


@contextmanager
def _figure(name: str, width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple["Axes", list[str]]]:
    """A figure apart from pyplot's global state; its SVG is in the list once the block has ended."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    done: list[str] = []
    with rc_context(cast("Any", STYLE)):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), done
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    done.append(_inline(buffer.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """The SVG for use inside a page: no prologue, addresses or sizes, ids of its own, colours by CSS variable."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', opening)
    opening = f'<svg {view_box.group(0) if view_box else ""} role="img" aria-hidden="true" focusable="false"'
    rest = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', rest)
    rest = re.sub(r'href="#', f'href="#{name}-', rest)
    rest = re.sub(r"url\(#", f"url(#{name}-", rest)
    rest = rest.replace("xlink:href", "href")
    for colour, variable in CSS_VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    return f"{opening}>{rest}".strip()


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points, each the mean of its neighbours."""
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _label_rows(axes: "Axes", labels: Sequence[str], accents: Sequence[bool]) -> None:
    axes.set_yticks(range(len(labels)), [label if len(label) <= 24 else label[:23] + "…" for label in labels])
    for tick, accent in zip(axes.get_yticklabels(), accents, strict=True):
        tick.set_color(INK if accent else MUTED)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _rows_height(n_rows: int) -> float:
    return max(1.3, 0.6 + 0.27 * n_rows)


def _short(number: int) -> str:
    return str(number) if number < 1000 else f"{number / 1000:.0f}k"
