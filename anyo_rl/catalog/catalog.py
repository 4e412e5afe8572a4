"""The catalog: items with a unique, reversible token path each, for a given tokenizer.

A path spells the item's title, or the codes of its semantic id (`anyo_rl.catalog.semantic_ids`).
"""

import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.catalog.tree import PrefixTree, build_tree
from anyo_rl.teacher.tokens import Tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalog:
    """The N items that can be recommended. An item's index is its row here.

    Attributes:
        item_ids: (N,) ids: ranks, matches and metrics go by these, never by title.
        titles: (N,) titles as they are tokenised and shown in prompts: cleaned of control tokens, and made unique.
        names: (N,) what stands for an item in a completion: its title, or its semantic id as the tokenizer writes it.
        paths: (N,) token paths of the names, each ending with the end-of-sequence token.
        tree: the prefix tree over the paths.
        index: item id to item index.
        n_collisions: how many names had to be made unique.
        items: the item table, in the same order.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    names: tuple[str, ...]
    paths: tuple[tuple[int, ...], ...]
    tree: PrefixTree
    index: dict[str, int]
    n_collisions: int
    items: pl.DataFrame

    def __len__(self) -> int:
        """Number of items N."""
        return len(self.item_ids)

    def find(self, name: str | None) -> str | None:
        """Id of the item that has this name, white space folded; `None` when there is none."""
        return None if name is None else self._by_name.get(" ".join(name.split()))

    def indices(self, item_ids: list[str]) -> np.ndarray:
        """Item indices of item ids.

        Raises:
            KeyError: an id is not in the catalog.
        """
        missing = [item_id for item_id in item_ids if item_id not in self.index]
        if missing:
            raise KeyError(
                f"item {missing[0]!r} is not in the catalog ({len(missing)} unknown of {len(item_ids)} items)"
            )
        return np.array([self.index[item_id] for item_id in item_ids], dtype=np.int64)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return dict(zip(self.names, self.item_ids, strict=True))


def build_catalog(items: pl.DataFrame, tokens: Tokens, semantic_ids: SemanticIds | None = None) -> Catalog:
    """Builds the catalog of an item table.

    A title that collides with an earlier one gets " (2)", " (3)", … appended. A title that is empty once control
    tokens are taken out becomes "item <id>". Each path reads back as its title, so that no two items share one.

    Args:
        items: columns `item_id` and `title`, ids unique.
        tokens: the tokenizer and its marker.
        semantic_ids: makes the paths out of these, whose codes the tokenizer has as added tokens. Titles are then
            what histories show, and nothing else; they may be any text.

    Raises:
        ValueError: no item, an id that occurs twice, a title or a code that the tokenizer does not read back, or an
            item without a semantic id.
    """
    ids = items["item_id"].to_list()
    if not ids:
        raise ValueError("the catalog has no items; expected at least one row with item_id and title")
    repeated = [item_id for item_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"item_id {repeated[0]!r} occurs more than once ({len(repeated)} such ids); ids must be unique"
        )

    titles: dict[str, None] = {}  # in order
    copies: dict[str, int] = {}  # how often each title came before: a thousand alike must not be tried one by one
    n_collisions = 0
    for item_id, raw in zip(ids, items["title"].to_list(), strict=True):
        base = tokens.safe_text(raw or "") or f"item {tokens.safe_text(item_id)}"
        copy = copies.get(base, 0) + 1
        title = base if copy == 1 else f"{base} ({copy})"
        while title in titles:
            copy += 1
            title = f"{base} ({copy})"
        copies[base] = copy
        n_collisions += copy > 1
        titles[title] = None
    if n_collisions:
        logger.info("%d of %d titles were taken and had a number appended", n_collisions, len(ids))
    if semantic_ids is None:
        paths = [tuple(tokens.item_ids(title)) for title in titles]
        names = list(titles)
        _check_reversible(names, tokens.item_titles(paths))
    else:
        n_collisions = semantic_ids.n_collisions
        paths, names = _code_paths(ids, tokens, semantic_ids)
    return Catalog(
        item_ids=tuple(ids),
        titles=tuple(titles),
        names=tuple(names),
        paths=tuple(paths),
        tree=build_tree(paths),
        index={item_id: i for i, item_id in enumerate(ids)},
        n_collisions=n_collisions,
        items=items,
    )


def _code_paths(ids: list[str], tokens: Tokens, semantic_ids: SemanticIds) -> tuple[list[tuple[int, ...]], list[str]]:
    """Paths of semantic ids, and how the tokenizer writes them."""
    missing = [item_id for item_id in ids if item_id not in semantic_ids.codes]
    if missing:
        raise ValueError(
            f"item {missing[0]!r} has no semantic id ({len(missing)} of {len(ids)} items; there are ids of "
            f"{len(semantic_ids.codes)}): take the items that the ids were made for"
        )
    codes = [semantic_ids.codes[item_id] for item_id in ids]
    paths = [tuple(tokens.code_ids(row)) for row in codes]
    names = tokens.item_titles(paths)
    for row, name in zip(codes, names, strict=True):
        if "".join(row) != "".join(name.split()):
            raise ValueError(
                f"semantic id {''.join(row)!r} is read back from its tokens as {name!r}: its codes must not be "
                f"special tokens, nor changed by the tokenizer"
            )
    return paths, names


def _check_reversible(titles: list[str], read_back: list[str]) -> None:
    changed = [(title, read) for title, read in zip(titles, read_back, strict=True) if title != read]
    if changed:
        title, read = changed[0]
        raise ValueError(
            f"title {title[:80]!r} is read back from its tokens as {read[:80]!r} ({len(changed)} of {len(titles)} "
            f"titles): the tokenizer cannot spell it; take a teacher with a byte-level tokenizer, or write the titles "
            f"as the tokenizer reads them"
        )
