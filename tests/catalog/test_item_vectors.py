"""What the vectors of added tokens start from."""

import numpy as np
import pytest
import torch
from trl import ModelConfig

from anyo_rl.catalog.item_vectors import ITEM_VECTORS, code_vectors, item_vectors
from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.run.folder import resolve
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.teacher.codes import NOISE, add_item_tokens, start_item_tokens
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens

TASK = load_task(DataArguments(toy_users=30, toy_categories=5))
ITEMS = TASK.interactions.items
CODES = [f"<i_{n}>" for n in range(40)]


def cosines(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    vectors = vectors - vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def never():
    pytest.fail("the teacher is not needed")


def job_of(folder, vectors, kind="item", start=None):
    args = TeacherArguments(item_tokens=kind, item_vectors=vectors, tiny_hidden_size=32, tiny_layers=1)
    return Job(folder, TASK, ModelConfig(model_name_or_path=start, dtype="float32"), args)


@pytest.mark.parametrize("own_space", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_keep_angles_and_have_the_scale_of_the_table(tied, own_space):
    tokenizer = train_tokenizer(["lamp oak"], vocab_size=300)
    model = make_tiny_teacher(tokenizer, hidden_size=64, n_layers=1, n_heads=2)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(5 * model.lm_head.weight.detach())
    ids = add_item_tokens(model, tokenizer, CODES)
    known = [model.get_input_embeddings().weight.detach()[: ids[0]].clone(), model.lm_head.weight[: ids[0]].clone()]
    vectors = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    start_item_tokens(model, ids, vectors, own_space=own_space)
    for before, weight in zip(known, (model.get_input_embeddings().weight, model.lm_head.weight), strict=True):
        after = weight.detach()[ids]
        assert torch.equal(weight[: ids[0]], before)
        away, size = (after - before.mean(0)).norm(dim=1).mean(), (before - before.mean(0)).norm(dim=1).mean()
        assert size * 0.98 < away < size * (1 + NOISE)
        np.testing.assert_allclose(cosines(after), cosines(vectors), atol=0.1)
        same = cosines(np.concatenate([after - after.mean(0), vectors - vectors.mean(0)]))[:40, 40:].diagonal()
        assert (same.min() > 0.95) == own_space  # in the space of the embeddings a vector stays where it is


def test_alike_items_differ_by_noise_alone_and_wide_vectors_are_folded():
    tokenizer = train_tokenizer(["lamp oak"], vocab_size=300)
    model = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=1, n_heads=2)
    ids = add_item_tokens(model, tokenizer, CODES)
    vectors = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    vectors[1] = vectors[0]
    start_item_tokens(model, ids, vectors, own_space=False)
    rows = model.get_input_embeddings().weight.detach()[ids]
    assert 0 < (rows[1] - rows[0]).norm() < 0.3 * (rows[2] - rows[0]).norm()
    start_item_tokens(model, ids, np.zeros_like(vectors), own_space=False)  # nothing is known of any item
    assert torch.isfinite(model.get_input_embeddings().weight).all()


def test_a_code_starts_at_the_mean_of_its_items():
    ids = SemanticIds({"x": ("<a_0>", "<b_1>"), "y": ("<a_0>", "<b_0>"), "z": ("<a_2>",)}, 0)
    found = code_vectors(ids, ["x", "y", "z"], np.array([[1.0, 0], [3, 2], [5, 5]], dtype=np.float32))
    assert found.tolist() == [[2, 1], [5, 5], [3, 2], [1, 0]]


def test_both_weigh_titles_and_choices_alike():
    tokenizer = train_tokenizer(["lamp oak tea moss"], vocab_size=300)
    teacher = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=1, n_heads=2), Tokens.of(tokenizer)
    titles, sequences = ["lamp", "oak", "tea", "moss"], [[0, 1], [2, 3], [0, 1, 2]]
    args = (titles, "teacher", lambda: teacher, sequences)
    text, both = item_vectors("text", *args), item_vectors("both", *args)
    chosen = item_vectors("collaborative", titles, "teacher", never, sequences)
    assert both.shape == (4, text.shape[1] + chosen.shape[1])
    for part, of_both in ((text, both[:, :16]), (chosen, both[:, 16:])):
        assert np.linalg.norm(of_both, axis=1).mean() == pytest.approx(1)
        np.testing.assert_allclose(cosines(of_both), cosines(part), atol=1e-4)


@pytest.mark.parametrize("vectors", ["text", "collaborative", "both"])
def test_a_teacher_starts_from_the_vectors_of_its_run(vectors, tmp_path):
    opening = job_of(tmp_path / "run", vectors).opening
    teacher = opening.load(None)
    made = (tmp_path / "run" / ITEM_VECTORS).stat()
    file = np.load(tmp_path / "run" / ITEM_VECTORS)
    ids = teacher.ids
    tokens = teacher.tokens.code_ids(ids.tokens())[:-1]
    rows = teacher.model.get_input_embeddings().weight.detach()[tokens]
    seen = file.std(1) > 0  # items that somebody chose
    found = np.corrcoef(cosines(rows)[seen][:, seen].ravel(), cosines(file[seen]).ravel())[0, 1]
    assert found > 0.7
    # Started again the run has the same, and makes nothing; so has a teacher that is loaded.
    again = job_of(tmp_path / "run", vectors).opening.load(None)
    assert torch.equal(again.model.get_input_embeddings().weight, teacher.model.get_input_embeddings().weight)
    assert (tmp_path / "run" / ITEM_VECTORS).stat() == made
    save_teacher(*opening.make([]), tmp_path / "base")
    loaded = job_of(tmp_path / "other", vectors, start=str(tmp_path / "base")).opening.load(tmp_path / "base")
    table = loaded.model.get_input_embeddings().weight.detach()
    assert torch.equal(table[: tokens[0]], opening.make([])[0].get_input_embeddings().weight[: tokens[0]])
    assert np.corrcoef(cosines(table[tokens])[seen][:, seen].ravel(), cosines(file[seen]).ravel())[0, 1] > 0.6


def test_semantic_ids_are_computed_of_the_same_vectors(tmp_path):
    pytest.importorskip("faiss", reason="needs the `semantic` extra")
    made = {}
    for vectors in ("mean", "text", "collaborative"):
        teacher = job_of(tmp_path / vectors, vectors, "semantic_id").opening.load(None)
        made[vectors] = teacher.ids
        assert len(set(teacher.ids.codes.values())) == len(ITEMS)
    assert made["mean"] == made["text"] != made["collaborative"]


def test_where_vectors_start_may_not_change():
    section = resolve(TeacherArguments())["TeacherArguments"]
    assert not any(section.is_free(name) for name in ("item_vectors", "title_vectors", "item_tokens"))
    assert not resolve(DataArguments())["DataArguments"].is_free("history_as")
