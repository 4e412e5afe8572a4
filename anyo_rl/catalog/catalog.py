"""The catalog: items with a unique, reversible token path each, for a given tokenizer.

A path spells the item's title, or the codes of its semantic id (`anyo_rl.catalog.semantic_ids`); an item token is a
semantic id of one code.
"""

import fcntl
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import tokenizers

from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.catalog.tree import PrefixTree, TokenPaths, build_tree_flat, flatten
from anyo_rl.catalog.tree_file import load_tree, save_tree
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import Tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalog:
    """The N items that can be recommended. An item's index is its row here.

    Attributes:
        item_ids: (N,) ids: ranks, matches and metrics go by these, never by title.
        titles: (N,) titles as they are tokenised and shown in prompts: cleaned of control tokens, and made unique.
        names: (N,) what stands for an item in a completion: its title, or its semantic id as the tokenizer writes it.
        tree: the prefix tree over the token paths of the names, each of which ends with the end-of-sequence token.
        index: item id to item index.
        n_collisions: how many names had to be made unique.
        items: the item table, in the same order.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    names: tuple[str, ...]
    tree: PrefixTree
    index: dict[str, int]
    n_collisions: int
    items: pl.DataFrame

    def __len__(self) -> int:
        """Number of items N."""
        return len(self.item_ids)

    @property
    def by_title(self) -> bool:
        """Whether completions name items by their titles, and not by added tokens."""
        return self.names is self.titles

    @property
    def paths(self) -> TokenPaths:
        """The token path of each item: `paths[3]` is a tuple of token ids."""
        return self.tree.paths

    def find(self, name: str | None) -> str | None:
        """Id of the item that has this name, white space folded; `None` when there is none."""
        return None if name is None else self._by_name.get(" ".join(name.split()))

    def added_tokens(self, item: int) -> str:
        """The added tokens by which an item goes, in a row, as a prompt may show them; a text that is not data.

        Raises:
            UsageError: items of this catalog go by their titles.
        """
        if self.by_title:
            raise UsageError(
                "prompts are to show items by added tokens, and this teacher knows them by their titles alone: set "
                "history_as to title, or item_tokens to item or semantic_id"
            )
        return "".join(self.names[item].split())

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

    def known(self, item_ids: Iterable[str]) -> list[int]:
        """Item indices of those item ids that are in the catalog: what a ranking can leave out."""
        return [self.index[item_id] for item_id in item_ids if item_id in self.index]

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
    named = _named_items(items, tokens, semantic_ids)
    return _with_tree(named, _build(named))


def open_catalog(
    items: pl.DataFrame, tokens: Tokens, ids: SemanticIds | None = None, folder: Path | None = None
) -> Catalog:
    """The catalog of an item table, its paths and tree mapped from a file that all processes of a machine share.

    The first process to come builds the tree and writes it, the others wait for it; it may be one of another program.
    A file's name is a fingerprint of all that paths depend on, so that none is ever taken for another catalog.

    Args:
        items: columns `item_id` and `title`, ids unique.
        tokens: the tokenizer and its marker.
        ids: makes the paths out of these semantic ids in place of titles.
        folder: where the file lies or is to lie; `None` builds the tree in this process's memory.

    Raises:
        ValueError: what `build_catalog` refuses.
        OSError: the file cannot be written or read.
    """
    if folder is None:
        return build_catalog(items, tokens, ids)
    named = _named_items(items, tokens, ids)
    if not tokens.tokenizer.is_fast:
        logger.info("%s cannot be fingerprinted: each process builds its own tree", type(tokens.tokenizer).__name__)
        return _with_tree(named, _build(named))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"tree-{_fingerprint(named)}.npy"
    if (tree := _saved(file)) is None:
        with _only_one(folder / ".lock"):
            if (tree := _saved(file)) is None:
                save_tree(_build(named), file)
                tree = load_tree(file)  # the pages that the other processes have, not this one's own
    return _with_tree(named, tree)


@dataclass(frozen=True)
class _NamedItems:
    """Items whose titles are unique and clean, and what makes token paths of them."""

    items: pl.DataFrame
    item_ids: list[str]
    titles: list[str]
    n_collisions: int
    tokens: Tokens
    semantic_ids: SemanticIds | None

    def path(self, item: int) -> list[int]:
        """The token path of one item."""
        if self.semantic_ids is None:
            return self.tokens.item_ids(self.titles[item])
        return self.tokens.code_ids(self.semantic_ids.codes[self.item_ids[item]])


def _named_items(items: pl.DataFrame, tokens: Tokens, semantic_ids: SemanticIds | None) -> _NamedItems:
    ids = items["item_id"].to_list()
    if not ids:
        raise UsageError("the catalog has no items; expected at least one row with item_id and title")
    repeated = [item_id for item_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UsageError(
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
    if semantic_ids is not None:
        missing = [item_id for item_id in ids if item_id not in semantic_ids.codes]
        if missing:
            raise UsageError(
                f"item {missing[0]!r} has no semantic id ({len(missing)} of {len(ids)} items; there are ids of "
                f"{len(semantic_ids.codes)}): take the items that the ids were made for"
            )
        n_collisions = semantic_ids.n_collisions
    return _NamedItems(items, ids, list(titles), n_collisions, tokens, semantic_ids)


def _build(named: _NamedItems) -> PrefixTree:
    """The tree of the items' paths, each of which reads back as its title or its codes."""
    tokens, offsets = flatten(map(named.path, range(len(named.item_ids))))
    if named.semantic_ids is None:
        _check_reversible(named.titles, named.tokens.item_titles(TokenPaths(tokens, offsets)))
    return build_tree_flat(tokens, offsets)


def _with_tree(named: _NamedItems, tree: PrefixTree) -> Catalog:
    titles = tuple(named.titles)
    return Catalog(
        item_ids=tuple(named.item_ids),
        titles=titles,
        names=titles if named.semantic_ids is None else _code_names(named, named.semantic_ids, tree.paths),
        tree=tree,
        index={item_id: i for i, item_id in enumerate(named.item_ids)},
        n_collisions=named.n_collisions,
        items=named.items,
    )


def _code_names(named: _NamedItems, semantic_ids: SemanticIds, paths: TokenPaths) -> tuple[str, ...]:
    """How the tokenizer writes the items' semantic ids."""
    names = tuple(named.tokens.item_titles(paths))
    for item_id, name in zip(named.item_ids, names, strict=True):
        row = semantic_ids.codes[item_id]
        if "".join(row) != "".join(name.split()):
            raise UsageError(
                f"semantic id {''.join(row)!r} is read back from its tokens as {name!r}: its codes must not be "
                f"special tokens, nor changed by the tokenizer"
            )
    return names


def _check_reversible(titles: list[str], read_back: list[str]) -> None:
    changed = [(title, read) for title, read in zip(titles, read_back, strict=True) if title != read]
    if changed:
        title, read = changed[0]
        raise UsageError(
            f"title {title[:80]!r} is read back from its tokens as {read[:80]!r} ({len(changed)} of {len(titles)} "
            f"titles): the tokenizer cannot spell it; take a teacher with a byte-level tokenizer, or write the titles "
            f"as the tokenizer reads them"
        )


def _saved(file: Path) -> PrefixTree | None:
    try:
        return load_tree(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s", error)
        return None


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Holds a lock on a file, which a process that dies lets go of."""
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:  # some shared file systems have no locks; each then builds, and writes the same bytes
            logger.info("%s cannot be locked (%s): processes build the tree side by side", lock, error)
        yield


def _fingerprint(named: _NamedItems) -> str:
    """Of all that token paths depend on: items in their order, names, tokenizer, marker, and the code that makes them.

    Cutting off and padding, which a tokenizer keeps from its last call, are no part of it.
    """
    tokens, codes = named.tokens, {} if named.semantic_ids is None else named.semantic_ids.codes
    spelling = json.loads(tokens.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    names = [codes.get(item_id, title) for item_id, title in zip(named.item_ids, named.titles, strict=True)]
    ends = [named.path(0), named.path(len(names) - 1)]  # other code, or other settings, would make them otherwise
    library = [tokenizers.__version__, type(tokens.tokenizer).__name__]
    parts = [tokens.marker_id, tokens.eos_id, library, ends, named.item_ids, names, spelling]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
