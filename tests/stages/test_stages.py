"""Stages on a small toy world with tiny teachers: what they train, which teacher they keep, and what they measure."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import ModelConfig, SFTConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.evaluation.summary import read_summary
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.run.folder import METRICS
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.evaluate import evaluate_run
from anyo_rl.stages.finish import load_checkpoint
from anyo_rl.stages.job import Job
from anyo_rl.stages.sft import train_sft
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens

pytestmark = pytest.mark.slow

IDS = torch.tensor([[5, 6, 7, 8]])
TINY = TeacherArguments(tiny_hidden_size=32, tiny_layers=2, tiny_vocab_size=400, max_reasoning_tokens=4, n_paths=2)


@pytest.fixture(scope="module")
def task() -> Task:
    PartialState(cpu=True)
    toy = DataArguments(toy_users=60, toy_categories=4, rationale_share=0.5, mask_history=True, split_seed=3)
    toy.max_validation, toy.max_test = 7, 11
    return load_task(toy)


def sft(task: Task, run_dir: Path, model: ModelConfig | None = None, **settings) -> Path:
    """The folder of a teacher that was trained to reason, for six steps with three validations."""
    settings = {"learning_rate": 3e-2, "max_steps": 6, "eval_steps": 2, "save_steps": 2, **settings}
    args = SFTConfig(
        output_dir=str(run_dir),
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=1,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return train_sft(Job(run_dir, task, model or ModelConfig(), TINY, args.seed), "sft", args)


@pytest.fixture(scope="module")
def trained(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished stage."""
    run_dir = tmp_path_factory.mktemp("run")
    assert sft(task, run_dir) == run_dir / "sft" / "teacher"
    return run_dir


def validations(run_dir: Path) -> dict[int, tuple[float, float]]:
    """NDCG@10 and HR@10 on validation by step."""
    rows = map(json.loads, (run_dir / METRICS).read_text().splitlines())
    return {row["step"]: (row["eval_ndcg@10"], row["eval_hr@10"]) for row in rows if "eval_ndcg@10" in row}


def slow_metrics(
    task: Task, teacher: Path, split: str, most: int, *, reasoning: bool = True
) -> tuple[float, float, float]:
    """NDCG@10, HR@10 and MRR after the likeliest reasoning, token by token, by the whole distribution."""
    model, tokenizer = load_teacher(ModelConfig(str(teacher), dtype="float32"))
    tokens = Tokens.of(tokenizer)
    catalog = build_catalog(task.interactions.items, tokens)
    rows = make_rows(task, task.split(split, most), catalog, tokens)
    assert len(rows) == most
    contexts = []
    for row in rows:
        context, ids = tokens.context_ids(row.prompt), []
        while reasoning and len(ids) < TINY.max_reasoning_tokens and not {tokens.marker_id, tokens.eos_id} & set(ids):
            with torch.no_grad():
                ids.append(int(model.eval()(torch.tensor([[*context, *ids]])).logits[0, -1].argmax()))
        contexts.append(tokens.marked_context(context, ids))
    targets, seen = [row.target_id for row in rows], [row.excluded for row in rows]
    ranks = DistributionRanker(catalog, model).rank(contexts, targets, excluded_B=seen).ranks_B
    ndcg = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    return float(ndcg.mean()), float((ranks <= 10).mean()), float((1 / ranks).mean())


def test_the_teacher_of_the_best_validation_is_kept(task, trained):
    """And validation is what the run was told: how many users, how long a reasoning, what is left out."""
    found = validations(trained)
    assert list(found) == [2, 4, 6]
    assert found[4] > max(found[2], found[6]), "the last is the best, or the first: the test shows nothing"
    assert slow_metrics(task, trained / "sft" / "teacher", "validation", 7)[:2] == pytest.approx(found[4], abs=1e-6)


def test_a_finished_stage_does_nothing(task, trained, monkeypatch):
    monkeypatch.setattr("anyo_rl.stages.sft.TeacherSFTTrainer", lambda **_: pytest.fail("it trains again"))
    before = (trained / METRICS).read_bytes()
    assert sft(task, trained) == trained / "sft" / "teacher"
    assert (trained / METRICS).read_bytes() == before


def test_adapters_end_in_a_whole_teacher_of_the_best_validation(task, trained, tmp_path):
    start = trained / "sft" / "teacher"
    names = ["q_proj", "down_proj"]
    lora = ModelConfig(str(start), dtype="float32", use_peft=True, lora_r=4, lora_target_modules=names)
    teacher = sft(task, tmp_path, lora, learning_rate=1e-2)
    assert not (teacher / "adapter_config.json").exists()
    found = validations(tmp_path)
    assert slow_metrics(task, teacher, "validation", 7)[:2] == pytest.approx(max(found.values()), abs=1e-6)
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (start, teacher))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if any(part in name for part in names)}


def test_a_teacher_that_only_got_worse_is_the_one_that_it_began_with(task, trained, tmp_path, caplog):
    start = trained / "sft" / "teacher"
    model = ModelConfig(str(start), dtype="float32")
    teacher = sft(task, tmp_path, model, learning_rate=1.0, eval_on_start=True, max_steps=2)
    found = validations(tmp_path)
    assert found[0] > found[2]
    assert "no validation was better than at the start" in caplog.text
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (start, teacher))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_evaluation_asks_each_teacher_as_it_was_trained(task, trained, tmp_path):
    """`direct` at once, and any other with its reasoning; the numbers are those of a slow decoding."""
    model, tokenizer = load_teacher(ModelConfig(str(trained / "sft" / "teacher"), dtype="float32"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # answers that depend on what was written
    teacher = tmp_path / "teacher"
    save_teacher(model, tokenizer, teacher)
    teachers = {"sft": teacher, "direct": teacher}
    summary = evaluate_run(Job(trained, task, ModelConfig(dtype="float32"), TINY, seed=3), teachers, baselines=False)
    assert {stage: set(modes) for stage, modes in summary.stages.items()} == {
        "sft": {"greedy", "mixture"},
        "direct": {"plain"},
    }
    plain, greedy = (slow_metrics(task, teacher, "test", 11, reasoning=wanted)[2] for wanted in (False, True))
    assert plain != greedy
    for stage, mode, expected in (("direct", "plain", plain), ("sft", "greedy", greedy)):
        assert summary.stages[stage][mode]["mrr"].mean == pytest.approx(expected, abs=1e-6)
    assert read_summary(trained) == summary


def test_a_whole_checkpoint_is_loaded_as_it_was_saved(small_teacher, tmp_path):
    small_teacher.save_pretrained(tmp_path)

    def start():
        pytest.fail("a whole model needs no other")

    found = load_checkpoint(tmp_path, start).eval()
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, small_teacher(IDS).logits)


def test_adapters_of_a_checkpoint_are_merged_into_the_model_that_the_stage_started_from(small_teacher, tmp_path):
    adapted = get_peft_model(copy.deepcopy(small_teacher), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    adapted.eval().save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path, lambda: copy.deepcopy(small_teacher)).eval()
    assert not hasattr(found, "peft_config") or not any("lora" in name for name, _ in found.named_parameters())
    with torch.no_grad():
        assert not torch.allclose(found(IDS).logits, small_teacher(IDS).logits, atol=1e-2)
        torch.testing.assert_close(found(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)


def test_validation_takes_the_runs_settings(small_teacher, tmp_path):
    task = load_task(DataArguments(toy_users=60, toy_categories=4, max_validation=7, mask_history=True))
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 400))
    catalog = build_catalog(task.interactions.items, tokens)
    job = Job(tmp_path, task, ModelConfig(), TeacherArguments(n_paths=3, max_reasoning_tokens=5), seed=4)
    found = job.validation(Teacher(small_teacher, tokens, catalog), "mixture")
    # The same draws whatever the run's seed is, so that measurements compare.
    assert found.how.sampling == Sampling(n=3, max_new_tokens=5, seed=0)
    assert found.how.mode == "mixture"
    assert [row.excluded for row in found.rows] == [task.excluded(row.example_id) for row in found.rows]
    assert all(set(row.history) <= set(row.excluded) for row in found.rows)
    users = task.split("validation", 7)["user_id"].to_list()
    assert [row.user_id for row in found.rows] == users
    assert len(users) == 7


def test_adapters_of_a_quantised_model_end_in_whole_weights(small_tokens, tmp_path):
    """Merged in full precision into what the adapters saw; merged in 4 bits, they would be rounded away."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    make_tiny_teacher(small_tokens.tokenizer, hidden_size=64, n_layers=2).save_pretrained(tmp_path / "start")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")

    def start():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "start", quantization_config=bits, dtype=torch.float32)

    adapted = get_peft_model(start(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(tmp_path / "adapters")
    found = load_checkpoint(tmp_path / "adapters", start).eval()
    save_teacher(found, small_tokens.tokenizer, tmp_path / "teacher")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").eval()
    assert not hasattr(saved.config, "quantization_config")
    assert {p.dtype for p in saved.parameters()} == {torch.float32}
    with torch.no_grad():
        # As in training: in eval mode bitsandbytes has another kernel on the CPU, off by itself.
        trained, before = adapted.train()(IDS).logits, start().train()(IDS).logits
        torch.testing.assert_close(saved(IDS).logits, trained, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(trained, before, atol=1e-2)
