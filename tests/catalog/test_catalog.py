import logging
import time

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.semantic_ids import SemanticIds, published_ids
from anyo_rl.data.completion import parse
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes


def catalog_of(tokens: Tokens, titles, ids=None) -> Catalog:
    ids = [f"i{index}" for index in range(len(titles))] if ids is None else ids
    return build_catalog(
        pl.DataFrame({"item_id": ids, "title": titles}, schema={"item_id": pl.String, "title": pl.String}), tokens
    )


def check(catalog: Catalog, tokens: Tokens) -> None:
    """What holds for a catalog of titles: they and paths are unique, each path reads back and finds its item."""
    assert catalog.names == catalog.titles
    assert len(set(catalog.titles)) == len(set(catalog.paths)) == len(catalog)
    for index, (item_id, title, path) in enumerate(zip(catalog.item_ids, catalog.titles, catalog.paths, strict=True)):
        assert catalog.index[item_id] == index
        assert catalog.tree.walk(path) == catalog.tree.leaf[index]
        assert catalog.find(title) == item_id
        assert catalog.find(parse(tokens.decode([tokens.marker_id, *path])).item) == item_id
        assert path[-1] == tokens.eos_id


titles = st.text(max_size=20) | st.sampled_from(["", " ", "Alien", "Alien  3", "Alien 3", "a->b", "a b", "x (2)", "x"])


@settings(max_examples=50)
@given(st.lists(titles, min_size=1, max_size=12))
def test_every_catalog_is_reversible(small_tokens, titles):
    check(catalog_of(small_tokens, titles), small_tokens)


def test_collisions_are_made_unique_and_counted(small_tokens):
    catalog = catalog_of(small_tokens, ["A", "B", "A", " A ", "A (2)", "A->", "a"])
    assert catalog.titles == ("A", "B", "A (2)", "A (3)", "A (2) (2)", "A (4)", "a")
    assert catalog.n_collisions == 4
    check(catalog, small_tokens)
    assert catalog_of(small_tokens, ["A (2)", "A", "A"]).titles == ("A (2)", "A", "A (3)")


def word_tokens(words: list[str], lowercase: bool = False) -> Tokens:
    """A tokenizer of whole words, which maps all others to <unk>."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<eos>", *words, "(", ")", "2", "3"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("->", normalized=False)])
    return Tokens.of(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>"))


def test_titles_that_the_tokenizer_cannot_spell_are_refused():
    tokens = word_tokens(["tea", "mug"])
    assert catalog_of(tokens, ["tea", "tea mug"]).titles == ("tea", "tea mug")
    with pytest.raises(
        ValueError, match=r"title 'lamp' is read back .* as '' \(2 of 3 titles\).*byte-level tokenizer"
    ):
        catalog_of(tokens, ["tea", "lamp", "rug"])  # both are <unk>: a number appended would never set them apart
    with pytest.raises(ValueError, match="title 'Tea' is read back from its tokens as 'tea'"):
        catalog_of(word_tokens(["tea", "mug"], lowercase=True), ["Tea", "mug"])


def test_collisions_are_logged(small_tokens, caplog):
    with caplog.at_level(logging.INFO):
        catalog_of(small_tokens, ["A", "B"])
        assert caplog.messages == []
        catalog_of(small_tokens, ["A", "B", "A"])
    assert caplog.messages == ["1 of 3 titles were taken and had a number appended"]


def test_many_equal_titles_take_no_square_time(small_tokens):
    start = time.process_time()
    catalog = catalog_of(small_tokens, ["Gift Card"] * 2000)
    assert time.process_time() - start < 10  # one by one it would be two million tokenisations
    assert catalog.n_collisions == 1999
    assert catalog.titles[-1] == "Gift Card (2000)"


def test_empty_titles_go_by_their_id(small_tokens):
    catalog = catalog_of(small_tokens, ["", None, "  ", "->", "<eos>", "item i0"])
    assert catalog.titles == ("item i0", "item i1", "item i2", "item i3", "item i4", "item i0 (2)")
    assert catalog.n_collisions == 1
    check(catalog, small_tokens)


@pytest.mark.parametrize(
    "title",
    ["<b>Tea</b> &amp; mug", "🙂👩‍👩‍👧", "日本語", "x" * 10_000, "rtl \u202e abc", "-", "3", "don't", '"', "\\"],
)
def test_hard_titles(small_tokens, title):
    check(catalog_of(small_tokens, [title, "Alien", title]), small_tokens)


def test_a_catalog_of_one(small_tokens):
    catalog = catalog_of(small_tokens, ["Alien"])
    assert len(catalog) == 1
    check(catalog, small_tokens)


def test_smollm2_catalog(smollm2_tokens):
    catalog = catalog_of(
        smollm2_tokens, ["Alien", "Alien 3", "Aliens", "<file_sep>", "<|im_end|>", "日本語", "x" * 500]
    )
    assert catalog.titles[3:5] == ("item i3", "item i4")
    check(catalog, smollm2_tokens)


def test_no_items_and_repeated_ids_are_refused(small_tokens):
    with pytest.raises(ValueError, match="the catalog has no items"):
        catalog_of(small_tokens, [])
    with pytest.raises(ValueError, match=r"item_id 'b' occurs more than once \(2 such ids\)"):
        catalog_of(small_tokens, ["1", "2", "3", "4", "5"], ids=["a", "b", "b", "c", "c"])


def test_find_folds_white_space_and_knows_nothing_else(small_catalog):
    assert small_catalog.find("  Toy \n Story ") == "i3"
    assert small_catalog.find("Alien 3") == "i1"
    for unknown in (None, "", "alien", "Alien 33"):
        assert small_catalog.find(unknown) is None


def test_indices(small_catalog):
    assert small_catalog.indices(["i3", "i0", "i3"]).tolist() == [3, 0, 3]
    assert small_catalog.indices([]).tolist() == []
    with pytest.raises(KeyError, match=r"item 'x' is not in the catalog \(2 unknown of 3 items\)"):
        small_catalog.indices(["i0", "x", "y"])


def test_items_keep_their_order_and_columns(small_tokens):
    items = pl.DataFrame({"item_id": ["z", "a"], "title": ["Alien", "mug"], "year": ["1979", None]})
    catalog = build_catalog(items, small_tokens)
    assert catalog.item_ids == ("z", "a")
    assert catalog.items.equals(items)


def tokens_with(codes: list[str], special: bool = False) -> Tokens:
    tokenizer = train_tokenizer([" lamp oak"], vocab_size=300)
    if special:
        tokenizer.add_tokens([AddedToken(code, special=True) for code in codes], special_tokens=True)
    else:
        add_codes(tokenizer, codes)
    return Tokens.of(tokenizer)


codes = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=15)


@settings(max_examples=30)
@given(codes)
def test_every_catalog_of_semantic_ids_is_reversible(rows):
    written = ["".join(f"<{letter}_{code}>" for letter, code in zip("abc", row, strict=True)) for row in rows]
    # Titles may be anything, a code among them: they are for histories alone.
    items = pl.DataFrame(
        {"item_id": [f"i{i}" for i in range(len(rows))], "title": [f"{written[0]} lamp"] * len(rows), "sid": written}
    )
    ids = published_ids(items, "sid")
    tokens = tokens_with(ids.tokens())
    catalog = build_catalog(items, tokens, ids)
    assert len(set(catalog.names)) == len(set(catalog.paths)) == len(catalog)
    assert catalog.n_collisions == ids.n_collisions == len(rows) - len(set(rows))
    assert catalog.titles[0] == "lamp"
    for index, (item_id, path) in enumerate(zip(catalog.item_ids, catalog.paths, strict=True)):
        assert catalog.tree.walk(path) == catalog.tree.leaf[index]
        assert len(path) == len(ids.codes[item_id]) + 1
        assert catalog.names[index] == "".join(ids.codes[item_id])
        assert catalog.find(parse(tokens.decode([tokens.marker_id, *path])).item) == item_id
    assert catalog.find("lamp") is None  # it is no answer


def test_semantic_ids_that_do_not_fit_the_items_or_the_tokenizer_are_refused():
    items = pl.DataFrame({"item_id": ["i0", "i1"], "title": ["a", "b"]})
    both = SemanticIds({"i0": ("<a_1>",), "i1": ("<a_2>",)}, 0)
    with pytest.raises(ValueError, match=r"item 'i1' has no semantic id \(1 of 2 items; there are ids of 1\)"):
        build_catalog(items, tokens_with(["<a_1>"]), SemanticIds({"i0": ("<a_1>",)}, 0))
    with pytest.raises(ValueError, match="'<a_2>' is no added token"):
        build_catalog(items, tokens_with(["<a_1>"]), both)
    with pytest.raises(ValueError, match="'<a_1>' is read back from its tokens as '': its codes must not be special"):
        build_catalog(items, tokens_with(["<a_1>", "<a_2>"], special=True), both)
    with pytest.raises(ValueError, match="make paths unique"):
        build_catalog(items, tokens_with(["<a_1>"]), SemanticIds({"i0": ("<a_1>",), "i1": ("<a_1>",)}, 0))
