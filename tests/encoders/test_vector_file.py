import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anyo_rl.encoders import vector_file
from anyo_rl.encoders.hidden_states import teacher_encoder
from anyo_rl.encoders.vector_file import shared_vectors
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker
from tests.encoders.sharing import PIECE, TITLES, make_encoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(vector_file, "PIECE", PIECE)


class Counting:
    """Counts the titles that an encoder embeds, and fails after so many."""

    def __init__(self, encoder, most=10**9):
        self.encoder, self.embed, self.most, self.n = encoder, encoder._embed, most, 0
        encoder._embed = self

    def __call__(self, ids):
        if self.n >= self.most:
            raise KeyboardInterrupt
        self.n += len(ids)
        return self.embed(ids)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_vectors_are_the_encoders_and_are_mapped(tmp_path):
    encoder = make_encoder()
    vectors = shared_vectors(encoder, TITLES, tmp_path / "v")
    torch.testing.assert_close(vectors, encoder(TITLES), rtol=1e-4, atol=1e-5)
    (file,) = (tmp_path / "v").iterdir()
    if Path("/proc/self/maps").exists():
        assert str(file) in Path("/proc/self/maps").read_text()
    array = np.load(file, allow_pickle=False)
    assert (array.dtype, array.shape) == (np.dtype("<f4"), (100, 32))
    ids = [str(item) for item in range(100)]
    written, targets = [f"-> {TITLES[item]}" for item in (7, 8, 90)], ["7", "9", "1"]
    mapped, ours = (EmbeddingRanker(ids, found, encoder, device="cpu") for found in (vectors, vectors.clone()))
    expected = ours.rank(written, targets)
    assert expected.ranks_B[0] == 1
    assert mapped.rank(written, targets).ranks_B.tolist() == expected.ranks_B.tolist()
    vectors[0] = 7.0  # stays in this process
    assert not (np.load(file, allow_pickle=False)[0] == 7).any()


def test_what_is_there_is_not_embedded_again(tmp_path):
    first = shared_vectors(make_encoder(), TITLES, tmp_path)
    encoder = make_encoder()  # the same weights, made once more
    counting = Counting(encoder)
    assert torch.equal(shared_vectors(encoder, TITLES, tmp_path), first)
    assert counting.n == 0


@pytest.mark.parametrize("change", ["weights", "one bit", "title", "order", "pooling", "max_length", "tokens"])
def test_whatever_changes_a_vector_has_a_file_of_its_own(tmp_path, change):
    encoder, titles = make_encoder(), list(TITLES)
    (tmp_path / "note.npy").write_text("mine")
    shared_vectors(encoder, titles, tmp_path)
    before = names(tmp_path)
    weight = encoder.backbone.layers[1].mlp.down_proj.weight.data
    if change == "weights":
        weight.mul_(1.01)
    elif change == "one bit":
        weight.view(torch.int32)[3, 5] ^= 1
    elif change == "title":
        titles[50] = "toy 777"
    elif change == "order":
        titles[:2] = titles[1::-1]
    elif change == "tokens":
        encoder.tokenizer.add_tokens(["amp"])
    else:
        setattr(encoder, change, {"pooling": "mean", "max_length": 2}[change])
    counting = Counting(encoder)
    vectors = shared_vectors(encoder, titles, tmp_path)
    assert counting.n == 100
    torch.testing.assert_close(vectors, encoder(titles), rtol=1e-4, atol=1e-5)
    assert len(names(tmp_path)) == 2  # the old one is gone
    assert names(tmp_path) != before
    assert (tmp_path / "note.npy").read_text() == "mine"


def test_a_killed_one_goes_on_from_its_pieces(tmp_path):
    killed = make_encoder()
    Counting(killed, most=40)
    with pytest.raises(KeyboardInterrupt):
        shared_vectors(killed, TITLES, tmp_path)
    assert len(names(tmp_path)) == 5
    (tmp_path / ".vectors-0.npy.ab12.partial").write_bytes(b"half")
    torn = max(tmp_path.glob("vectors-*"), key=lambda file: int(file.stem.split("-")[-1]))
    torn.write_bytes(torn.read_bytes()[:-4])
    encoder = make_encoder()
    counting = Counting(encoder)
    vectors = shared_vectors(encoder, TITLES, tmp_path)
    assert counting.n == 100 - 4 * PIECE
    assert len(names(tmp_path)) == 1
    assert torch.equal(vectors, shared_vectors(make_encoder(), TITLES, tmp_path / "unbroken"))


def test_a_damaged_file_is_made_again(tmp_path, caplog):
    expected = shared_vectors(make_encoder(), TITLES, tmp_path).clone()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    assert torch.equal(shared_vectors(make_encoder(), TITLES, tmp_path), expected)
    assert "is damaged" in caplog.text


def test_clear_errors(tmp_path):
    with pytest.raises(ValueError, match="there is no text to embed"):
        shared_vectors(make_encoder(), [], tmp_path)
    with pytest.raises(ValueError, match="found 100 different texts among 101, expected each of them once"):
        shared_vectors(make_encoder(), [*TITLES, TITLES[0]], tmp_path)
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"makes no token of '' \(1 of 8 texts\)"):
        shared_vectors(encoder, ["", *TITLES], tmp_path)
    encoder.backbone.norm.weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    with pytest.raises(ValueError, match=r"norm.weight is empty: gather weights that are shared out"):
        shared_vectors(encoder, TITLES, tmp_path)
    assert names(tmp_path) == []


def launched(out, *arguments):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    where = ["--config_file", str(ROOT / "accelerate_configs" / "cpu_2.yaml"), "-m", "tests.encoders.sharing"]
    command = [*accelerate, *where, str(out), *map(str, arguments)]
    return subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_share_the_titles_and_one_may_be_killed(tmp_path):
    killed = launched(tmp_path, 3 * PIECE)
    assert killed.returncode != 0
    left = names(tmp_path / "vectors")
    n_left = sum(len(np.load(tmp_path / "vectors" / name)) for name in left)
    assert n_left >= 3 * PIECE
    done = launched(tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    counts = np.array([json.loads((tmp_path / f"counts-{rank}.json").read_text()) for rank in (0, 1)])
    assert counts[:, 0].tolist() == [2, 2]
    assert counts[:, 1].sum() == 100 - n_left
    assert counts[:, 2].tolist() == [52, 48]  # 13 pieces, the last of 4 titles
    assert len(names(tmp_path / "vectors")) == 1  # those of the weights before are gone
    encoder = make_encoder()
    before = shared_vectors(encoder, TITLES, tmp_path / "alone").clone()
    with torch.no_grad():
        encoder.backbone.norm.weight.mul_(2)
    after = shared_vectors(encoder, TITLES, tmp_path / "alone")
    for rank in (0, 1):
        found = load_file(tmp_path / f"found-{rank}.safetensors")
        assert torch.equal(found["before"], before)
        assert torch.equal(found["after"], after)
    assert not torch.equal(before, after)


def test_lora_has_vectors_of_its_own(small_teacher, small_tokens, small_catalog, tmp_path):
    from peft import LoraConfig, get_peft_model

    titles = small_catalog.titles
    before = shared_vectors(teacher_encoder(small_teacher, small_tokens.tokenizer), titles, tmp_path).clone()
    adapted = get_peft_model(small_teacher, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    after = shared_vectors(teacher_encoder(adapted, small_tokens.tokenizer), titles, tmp_path)
    assert not torch.allclose(before, after, atol=1e-4)
