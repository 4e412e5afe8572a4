import json
import logging
import threading
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from anyo_rl.catalog import catalog as module
from anyo_rl.catalog.catalog import build_catalog, open_catalog
from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["Alien", "Alien 3", "mug"]})
IDS = SemanticIds({"a": ("<a_0>", "<b_1>"), "b": ("<a_0>", "<b_0>"), "c": ("<a_1>",)}, 0)


def new_tokens() -> Tokens:
    tokenizer = train_tokenizer([f" {title}" for title in ITEMS["title"]] * 3, vocab_size=300)
    add_codes(tokenizer, IDS.tokens())
    return Tokens.of(tokenizer)


def trees(folder) -> list[str]:
    return sorted(file.name for file in folder.glob("*.npy"))


@pytest.mark.parametrize("ids", [None, IDS])
def test_an_opened_catalog_is_the_built_one(tmp_path, ids):
    tokens = new_tokens()
    built = build_catalog(ITEMS, tokens, ids)
    for _ in range(2):  # written, then found
        opened = open_catalog(ITEMS, tokens, ids, tmp_path / "run" / "catalog")
        assert list(opened.paths) == list(built.paths)
        assert opened.tree.fingerprint == built.tree.fingerprint
        assert isinstance(opened.tree.token.base, np.memmap)
        assert isinstance(opened.paths.tokens.base, np.memmap)
        for field in ("item_ids", "titles", "names", "index", "n_collisions"):
            assert getattr(opened, field) == getattr(built, field)
        assert opened.items.equals(ITEMS)
    assert len(trees(tmp_path / "run" / "catalog")) == 1


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_catalog(ITEMS, new_tokens()).titles == ("Alien", "Alien 3", "mug")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_built_again(tmp_path, monkeypatch):
    tokens = new_tokens()
    open_catalog(ITEMS, tokens, folder=tmp_path)
    monkeypatch.setattr(module, "_build", lambda _: pytest.fail("built again"))
    open_catalog(ITEMS, tokens, folder=tmp_path)
    open_catalog(ITEMS, new_tokens(), folder=tmp_path)  # the same tokenizer, made once more
    tokens.tokenizer(["Alien", "Alien 3"], padding=True, truncation=True, max_length=2)
    open_catalog(ITEMS, replace(tokens, chat_template_kwargs={"enable_thinking": False}), folder=tmp_path)
    saved = tmp_path / "teacher"
    tokens.tokenizer.save_pretrained(saved)
    open_catalog(ITEMS, Tokens.of(type(tokens.tokenizer).from_pretrained(saved)), folder=tmp_path)


def test_whatever_changes_a_path_has_a_file_of_its_own(tmp_path):
    tokens, grown, other_marker, other_rules = (new_tokens() for _ in range(4))
    grown.tokenizer.add_tokens(["Alien"])
    other_marker.tokenizer.add_tokens(["<go>"], special_tokens=True)
    rules = json.loads(other_rules.tokenizer.backend_tokenizer.to_str())
    rules["normalizer"] = {"type": "Lowercase"}
    other_rules.tokenizer._tokenizer = type(tokens.tokenizer.backend_tokenizer).from_str(json.dumps(rules))
    lower = ITEMS.with_columns(title=pl.col("title").str.to_lowercase())
    asked = [
        (ITEMS, tokens, None),
        (ITEMS.reverse(), tokens, None),
        (ITEMS.head(2), tokens, None),
        (ITEMS.with_columns(title=pl.Series(["Alien", "Alien 4", "mug"])), tokens, None),
        (ITEMS.with_columns(item_id=pl.Series(["a", "b", "d"])), tokens, None),
        (ITEMS, tokens, IDS),
        (ITEMS, tokens, SemanticIds(dict(IDS.codes) | {"c": ("<b_1>",)}, 0)),
        (ITEMS, grown, None),
        (ITEMS, Tokens.of(other_marker.tokenizer, "<go>"), None),
        (lower, tokens, None),
        (lower, other_rules, None),
    ]
    for n_files, (items, its_tokens, ids) in enumerate(asked, 1):
        opened = open_catalog(items, its_tokens, ids, tmp_path)
        assert list(opened.paths) == list(build_catalog(items, its_tokens, ids).paths)
        assert len(trees(tmp_path)) == n_files


def test_one_builds_and_the_others_wait_for_it(tmp_path, monkeypatch):
    tokens, builds, found = new_tokens(), [], []

    def slow(named, build=module._build):
        builds.append(threading.get_ident())
        time.sleep(0.2)
        return build(named)

    monkeypatch.setattr(module, "_build", slow)
    # A lock belongs to who opened the file: threads stand for processes.
    workers = [
        threading.Thread(target=lambda: found.append(open_catalog(ITEMS, tokens, folder=tmp_path))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(builds) == 1
    assert len({catalog.tree.fingerprint for catalog in found}) == 1
    assert len(found) == 4


def test_a_build_that_fails_leaves_nothing_and_holds_nobody_up(tmp_path, monkeypatch):
    tokens = new_tokens()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            open_catalog(ITEMS, tokens, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    open_catalog(ITEMS, tokens, folder=tmp_path)
    assert len(trees(tmp_path)) == 1
    with pytest.raises(ValueError, match="the catalog has no items"):
        open_catalog(ITEMS.head(0), tokens, folder=tmp_path)


def test_a_broken_file_is_built_again(tmp_path, caplog):
    tokens = new_tokens()
    paths = list(open_catalog(ITEMS, tokens, folder=tmp_path).paths)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(b"")
    assert list(open_catalog(ITEMS, tokens, folder=tmp_path).paths) == paths
    assert "is not a complete prefix tree" in caplog.text
    assert file.stat().st_size > 0


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError("Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level(logging.INFO):
        open_catalog(ITEMS, new_tokens(), folder=tmp_path)
    assert len(trees(tmp_path)) == 1
    assert "cannot be locked (Function not implemented)" in caplog.text


def test_a_tokenizer_without_a_definition_has_no_file(tmp_path, monkeypatch, caplog):
    tokens = new_tokens()
    monkeypatch.setattr(type(tokens.tokenizer), "is_fast", False)
    with caplog.at_level(logging.INFO):
        assert len(open_catalog(ITEMS, tokens, folder=tmp_path)) == 3
    assert trees(tmp_path) == []
    assert "cannot be fingerprinted: each process builds its own tree" in caplog.text
