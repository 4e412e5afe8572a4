import copy
import dataclasses
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from trl import ModelConfig, SFTConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.item_tokens import (
    SEMANTIC_IDS,
    ItemTokens,
    adapters,
    load_answering,
    semantic_ids,
    teacher_files,
)
from anyo_rl.catalog.opening import Teacher
from anyo_rl.catalog.semantic_ids import read_ids
from anyo_rl.data.schema import DataError
from anyo_rl.encoders.titles import title_vectors
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.finish import finish_stage, load_checkpoint
from anyo_rl.stages.job import Job
from anyo_rl.teacher.codes import add_item_tokens
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.callbacks import keep_best
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.sft import TeacherSFTTrainer, sft_dataset

TITLES = [f"{kind} {style} {grade}" for kind in ("lamp", "tea") for style in ("oak", "moss") for grade in (1, 2, 3, 4)]
ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{index}" for index in range(16)],
        "title": TITLES,
        "sid": [f"<a_{index // 4}><b_{index // 2}>" for index in range(16)],  # in pairs
    }
)
COMPUTED = ItemTokens("semantic_id")
PUBLISHED = ItemTokens("semantic_id", column="sid")


def fresh(seed: int = 0):
    tokenizer = train_tokenizer(TITLES, vocab_size=300)
    return make_tiny_teacher(tokenizer, hidden_size=16, n_layers=1, n_heads=2, seed=seed), tokenizer


def vectors_of_titles(seed: int = 0):
    model, tokenizer = fresh(seed)
    return title_vectors(model, Tokens.of(tokenizer), TITLES)


def never():
    pytest.fail("no vectors are needed")


def test_titles_need_no_semantic_ids(tmp_path):
    assert semantic_ids(tmp_path, ITEMS, ItemTokens(), None, never) is None
    assert semantic_ids(tmp_path, ITEMS, ItemTokens(), tmp_path, never) is None
    assert teacher_files(None) == {}
    with pytest.raises(DataError, match="item_vectors is text and item_tokens is title: there is no added token"):
        semantic_ids(tmp_path, ITEMS, ItemTokens(vectors="text"), None, never)
    with pytest.raises(DataError, match="semantic_id_column is 'sid' but item_tokens is title"):
        semantic_ids(tmp_path, ITEMS, dataclasses.replace(PUBLISHED, kind="title"), None, never)


def test_published_ids_need_no_vectors(tmp_path):
    ids = semantic_ids(tmp_path, ITEMS, PUBLISHED, "some/model", never)
    assert ids.n_collisions == 8
    assert ids.codes["i5"] == ("<a_1>", "<b_2>", "<c_1>")
    with pytest.raises(DataError, match="no column 'codes'"):
        semantic_ids(tmp_path, ITEMS, dataclasses.replace(PUBLISHED, column="codes"), None, never)


def test_item_tokens_are_ids_of_one_code(tmp_path):
    ids = semantic_ids(tmp_path, ITEMS, ItemTokens("item"), "some/model", never)
    assert ids.tokens() == [f"<i_{row}>" for row in range(16)]
    assert ids.codes["i5"] == ("<i_5>",)
    model, tokenizer = fresh()
    add_item_tokens(model, tokenizer, ids.tokens())
    catalog = build_catalog(ITEMS, Tokens.of(tokenizer), ids)
    assert (catalog.tree.n_nodes, catalog.tree.n_children[0], catalog.find("<i_5>")) == (33, 16, "i5")
    save_teacher(model, tokenizer, tmp_path / "teacher", teacher_files(ids))
    assert semantic_ids(tmp_path, ITEMS, ItemTokens("item"), tmp_path / "teacher", never) == ids
    for wanted in (COMPUTED, ItemTokens()):
        with pytest.raises(DataError, match=f"answers with item tokens .* item_tokens is {wanted.kind}: set"):
            semantic_ids(tmp_path, ITEMS, wanted, tmp_path / "teacher", never)
    with pytest.raises(DataError, match="semantic_id_column is 'sid' but item_tokens is item"):
        semantic_ids(tmp_path, ITEMS, dataclasses.replace(PUBLISHED, kind="item"), None, never)
    many = pl.DataFrame({"item_id": [str(row) for row in range(100_001)]})
    with pytest.raises(DataError, match=r"has 100,001 items, .* expected 100,000 at most: set item_tokens to"):
        semantic_ids(tmp_path, many, ItemTokens("item"), None, never)


def test_computed_ids_are_made_once_and_stay(tmp_path):
    pytest.importorskip("faiss", reason="needs the `semantic` extra")
    wanted = dataclasses.replace(COMPUTED, n_levels=2, n_codes=4)
    ids = semantic_ids(tmp_path / "run", ITEMS, wanted, None, vectors_of_titles)
    assert {len(codes) for codes in ids.codes.values()} <= {2, 3}
    assert read_ids(tmp_path / "run" / SEMANTIC_IDS) == ids
    assert semantic_ids(tmp_path / "run", ITEMS, wanted, None, never) == ids  # as after a kill
    assert semantic_ids(tmp_path / "other", ITEMS, wanted, None, vectors_of_titles) == ids
    assert semantic_ids(tmp_path / "third", ITEMS, wanted, None, lambda: vectors_of_titles(1)) != ids
    with pytest.raises(DataError, match="n_codes is 3: expected a power of two"):
        semantic_ids(tmp_path / "bad", ITEMS, dataclasses.replace(COMPUTED, n_codes=3), None, vectors_of_titles)


def test_a_trained_teacher_keeps_its_own_ids(tmp_path):
    ids = semantic_ids(tmp_path, ITEMS, PUBLISHED, None, never)
    model, tokenizer = fresh()
    add_item_tokens(model, tokenizer, ids.tokens())
    folder = tmp_path / "teacher"
    save_teacher(model, tokenizer, folder, teacher_files(ids))
    for wanted in (COMPUTED, PUBLISHED):
        assert semantic_ids(tmp_path / "run", ITEMS, wanted, folder, never) == ids
    again, _ = load_answering(ModelConfig(model_name_or_path=str(folder), dtype="float32"), ids)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    with pytest.raises(DataError, match=r"answers with semantic ids .*set item_tokens to semantic_id"):
        semantic_ids(tmp_path, ITEMS, ItemTokens(), folder, never)
    moved = ITEMS.with_columns(sid=pl.col("sid").reverse())
    with pytest.raises(
        DataError, match=r"item 'i0' is <a_3><b_7><c_0> by column 'sid' and <a_0><b_0><c_0> in .*16 of"
    ):
        semantic_ids(tmp_path, moved, PUBLISHED, folder, never)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_training_moves_the_rows_of_codes_and_saves_them(lora, tmp_path):
    ids = semantic_ids(tmp_path, ITEMS, PUBLISHED, None, never)
    save_teacher(*fresh(), tmp_path / "base")
    base = ModelConfig(model_name_or_path=str(tmp_path / "base"), dtype="float32")
    model_args = dataclasses.replace(base, use_peft=lora, lora_target_modules=["q_proj", "v_proj"])
    model, tokenizer = load_answering(model_args, ids)
    start = copy.deepcopy(model)
    tokens = Tokens.of(tokenizer)
    catalog = build_catalog(ITEMS, tokens, ids)
    rows = [
        Row(prompt=f"{TITLES[i]}\n", example_id=str(i), target_id=f"i{(i + 1) % 16}", history=[f"i{i}"], user_id="u")
        for i in range(16)
    ]
    settings = SFTConfig(
        output_dir=str(tmp_path / "stage"),
        max_steps=3,
        per_device_train_batch_size=8,
        learning_rate=0.05,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        report_to="none",
        disable_tqdm=True,
    )
    stop_at_marker(model, tokens)
    trainer = TeacherSFTTrainer(
        model=model,
        args=keep_best(settings, tmp_path / "stage"),
        train_dataset=sft_dataset(rows, catalog, tokens, None),
        processing_class=tokenizer,
        peft_config=adapters(model_args, model, tokenizer, ids),
        catalog=catalog,
        validation=Validation(rows, catalog, tokens, How("plain", Sampling(max_new_tokens=4), top_k=1)),
    )
    job = Job(tmp_path, SimpleNamespace(), model_args, TeacherArguments())
    teacher = Teacher(model, tokens, catalog, ids)
    folder = finish_stage(job, "stage", trainer, teacher, lambda: load_answering(model_args, ids)[0])
    found = load_checkpoint(tmp_path / "stage" / "checkpoint-3", lambda: load_answering(model_args, ids)[0])
    codes = torch.tensor(tokens.code_ids(ids.tokens())[:-1])
    now, before = (m.get_input_embeddings().weight.detach() for m in (found, start))
    assert ((now[codes] - before[codes]).abs().amax(1) > 1e-3).all()
    # Adapters leave the other rows alone; whole training moves those that are read or written.
    assert torch.equal(now[: codes.min()], before[: codes.min()]) == lora
    assert folder == tmp_path / "stage" / "teacher"
    assert read_ids(folder / SEMANTIC_IDS) == ids
    assert semantic_ids(tmp_path, ITEMS, COMPUTED, folder, never) == ids
    saved, reread = load_answering(dataclasses.replace(base, model_name_or_path=str(folder)), ids)
    assert build_catalog(ITEMS, Tokens.of(reread), ids).tree.fingerprint == catalog.tree.fingerprint
    assert torch.equal(saved.get_input_embeddings().weight, now)
