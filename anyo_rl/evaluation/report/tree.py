"""A picture of one search: an HTML file that needs nothing else, with the tree, the items and what it cost.

Texts come from the teacher and the data, and are escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from anyo_rl.search.answers import Recommendation
from anyo_rl.search.tree import ROOT

BOX_WIDTH, GAP_X, GAP_Y, LINE, LETTERS = 230, 60, 14, 17, 32  # pixels; letters of a line
MOST_LINES = 8  # of a box; its tooltip and the list have the rest


@dataclass(frozen=True)
class Asked:
    """What a picture says of whom it is of: a headline, the history and what was really chosen, in titles."""

    title: str
    history: Sequence[str]
    target: str | None = None


@dataclass(frozen=True)
class Box:
    """A node as it is drawn, in pixels from the top left."""

    name: str
    x: int
    y: int
    height: int
    texts: tuple[str, ...]
    whole: str
    note: str
    weight: float
    chosen: bool
    width: int = BOX_WIDTH


@dataclass(frozen=True)
class Line:
    """From a parent's right edge to a child's left one."""

    x1: int
    y1: int
    x2: int
    y2: int
    chosen: bool


def tree_page(found: Recommendation, asked: Asked, titles: Mapping[str, str]) -> str:
    """The page.

    Args:
        found: what a user was answered.
        asked: of whom it is.
        titles: of items, by id.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    boxes, lines = layout(found)
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    merged = any(score > 0 for score in found.scores_K)  # no log-probability is
    return environment.get_template("tree.html.jinja").render(
        title=asked.title,
        style=(folder / "report.css").read_text(encoding="utf-8"),
        facts=[
            ("tokens written", f"{found.n_tokens:,}"),
            ("catalog nodes read", "not counted" if found.n_nodes is None else f"{found.n_nodes:,}"),
            ("nodes of the tree", f"{len(found.tree.nodes):,}"),
            ("answered after", f"{len(found.ending.leaves)} of them"),
        ],
        history=asked.history,
        boxes=boxes,
        lines=lines,
        width=max(box.x + box.width for box in boxes) + 10,
        height=max(box.y + box.height for box in boxes) + 10,
        score_name="Score" if merged else "Probability",
        items=[
            (titles.get(item, item), f"{score if merged else math.exp(score):.4f}")
            for item, score in zip(found.item_ids_K, found.scores_K, strict=True)
        ],
        target=asked.target,
    )


def layout(found: Recommendation) -> tuple[list[Box], list[Line]]:
    """Boxes in the order of the tree's nodes, and lines: depth goes to the right, children stand below one another."""
    tree, weights = found.tree, dict(zip(found.ending.leaves, found.ending.weights, strict=True))
    chosen = {ROOT, *tree.above(found.ending.leaves[0])}
    texts = [
        tuple(_wrapped(node.text or ("prompt" if number == ROOT else "(end)")))
        for number, node in enumerate(tree.nodes)
    ]
    heights = [LINE * min(len(one), MOST_LINES) + 32 for one in texts]
    below: dict[int, list[int]] = {}
    for number, node in enumerate(tree.nodes):
        below.setdefault(node.parent, []).append(number)
    tops, extents = [10] * len(texts), [0] * len(texts)
    for number in range(len(texts) - 1, -1, -1):  # children come after their parents
        extents[number] = max(heights[number] + GAP_Y, sum(extents[child] for child in below.get(number, ())))
    depth = [0] * len(texts)
    boxes = []
    for number, node in enumerate(tree.nodes):
        top = tops[number]
        for child in below.get(number, ()):
            tops[child], depth[child] = top, depth[number] + 1
            top += extents[child]
        notes = [f"worth {node.value:.2f}"] if node.value is not None else []
        notes += [f"{node.visits} visits"] if node.visits else []
        notes += [f"drawn {node.draws} times"] if node.draws > 1 else []
        notes += [f"weight {weights[number]:.2f}"] if number in weights else []
        shown = texts[number][:MOST_LINES]
        shown = shown if len(texts[number]) <= MOST_LINES else (*shown[:-1], "…")
        x, whole = 10 + depth[number] * (BOX_WIDTH + GAP_X), " / ".join(node.text.splitlines()) or texts[number][0]
        note, weight = ", ".join(notes), weights.get(number, 0.0)
        name = node.name or "prompt"
        boxes.append(Box(name, x, tops[number], heights[number], shown, whole, note, weight, number in chosen))
    lines = [
        Line(
            boxes[node.parent].x + BOX_WIDTH,
            boxes[node.parent].y + heights[node.parent] // 2,
            boxes[number].x,
            boxes[number].y + heights[number] // 2,
            number in chosen,
        )
        for number, node in enumerate(tree.nodes)
        if number != ROOT
    ]
    return boxes, lines


def _wrapped(text: str) -> list[str]:
    return [part for line in text.splitlines() for part in wrap(line, LETTERS)] or [text[:LETTERS]]
