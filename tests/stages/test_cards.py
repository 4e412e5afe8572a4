"""Model cards: what they tell, and what they keep to themselves."""

import json
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.stages import CONTROLS, RANK_TRAINED, TEACHERS
from anyo_rl.evaluation.summary import Summary
from anyo_rl.metrics.intervals import Interval
from anyo_rl.stages.cards import hub_id, plain, write_cards
from anyo_rl.teacher.tokens import Tokens

VALUE = Interval(0.25, 0.2, 0.3, 4)
SECRET = "sentinel-of-a-secret"


@pytest.fixture(scope="module")
def task():
    return load_task(DataArguments(toy_users=20, toy_categories=5))


@pytest.fixture
def run_dir(tmp_path):
    """A run of GRPO with LoRA after a warm start; its data and its reward lie elsewhere on the machine."""
    grpo = {"learning_rate": 1e-5, "num_generations": 8, "hub_token": SECRET, "output_dir": str(tmp_path)}
    config = {
        "DataArguments": {"dataset": f"{tmp_path}/logs/<b>my|log.csv"},
        "ModelConfig": {"model_name_or_path": "Qwen/Qwen3-0.6B", "use_peft": True, "lora_r": 16, "lora_alpha": 32},
        "TeacherArguments": {"max_reasoning_tokens": 48, "item_tokens": "title"},
        "ReasonerArguments": {"reward_funcs": ["ndcg", f"{tmp_path}/my_reward.py:short"], "prm": f"{tmp_path}/prm"},
        "GRPOConfig": grpo,
        "WarmStart": {"learning_rate": 1e-3, "max_steps": 600},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"stage": "sft", "step": 600, "loss": 1.0}, {"stage": "grpo", "step": 200, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "versions.json").write_text('{"python": "3.11", "num_processes": 2, "distributed_type": "MULTI_CPU"}')
    for stage in ("sft", "direct", "grpo"):
        (tmp_path / stage / "teacher").mkdir(parents=True)
    return tmp_path


def summary(run_dir):
    stages = {stage: {"plain": {"ndcg@10": VALUE}} for stage in ("grpo", "direct", "popularity")}
    return Summary(dataset=f"{run_dir}/logs/<b>my|log.csv", n_users=4, stages=stages)


def cards(run_dir, task, tokens, teachers=None):
    log = replace(task.args, dataset=f"{run_dir}/logs/<b>my|log.csv")
    teachers = teachers or {stage: run_dir / stage / "teacher" for stage in ("sft", "direct", "grpo")}
    catalog = build_catalog(task.interactions.items, tokens)
    write_cards(run_dir, replace(task, args=log), teachers, tokens, catalog, summary(run_dir))
    return {stage: (run_dir / stage / "teacher" / "README.md").read_text() for stage in ("sft", "direct", "grpo")}


def test_a_card_tells_how_the_teacher_was_made_and_how_good_it_is(run_dir, task, small_tokens):
    found = cards(run_dir, task, small_tokens)
    card = ModelCard(found["grpo"])
    assert card.data.base_model == "Qwen/Qwen3-0.6B"
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.license is None
    for line in (
        "| weights | LoRA of rank 16, alpha 32, on the layers that peft takes by default; merged |",
        "| before it | supervised fine-tuning on rationales, 600 updates |",
        "| updates | 200; of the checkpoints the best on validation is kept |",
        "| `learning_rate` | 1e-05 |",
        "| `reward_funcs` | ndcg, my_reward.py:short |",
        "| grpo | plain | – | 0.2500 [0.2000, 0.3000] | – | – |",
        "| popularity | plain | – | 0.2500 [0.2000, 0.3000] | – | – |",
        f"the token `->` ({small_tokens.marker_id})",
        "python 3.11; 2 process(es), MULTI&#95;CPU",
    ):
        assert line.replace("&#95;", "_") in card.content, line
    # A warm start's settings are its own, and the prompt is made of the catalog's titles.
    assert "| `learning_rate` | 0.001 |" in found["sft"]
    assert "num_generations" not in found["sft"]
    titles = task.interactions.items["title"].head(3).to_list()
    assert "```text\nHistory:\n{}\n{}\n{}\nNext:\n```".format(*titles) in found["grpo"]
    assert "put behind the prompt" in found["direct"]


def test_chat_models_that_think_are_asked_in_their_own_format(run_dir, task, qwen3_tokenizer):
    found = cards(run_dir, task, tokens := Tokens.of(qwen3_tokenizer))
    named = f"the token `</think>` ({tokens.marker_id}), two line breaks, and then the item's title"
    tag = "It writes `<think>` (where the prompt does not end with it), its reasoning"
    assert f"{tag}, a step a line, then the marker, {named}" in found["grpo"]
    assert r"an empty thought, `<think>\n\n</think>\n\n`, which is put behind the prompt" in found["direct"]


def test_no_path_no_secret_and_no_markup_of_others(run_dir, task, small_tokens):
    for card in cards(run_dir, task, small_tokens).values():
        assert str(run_dir) not in card
        assert SECRET not in card
        assert "<b>" not in card
        assert "&#60;b&#62;my&#124;log.csv" in card


def test_teachers_from_elsewhere_keep_their_card(run_dir, task, small_tokens, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "README.md").write_text("theirs")
    teachers = {"sft": other, "direct": run_dir / "direct" / "teacher", "grpo": run_dir / "grpo" / "teacher"}
    with pytest.raises(FileNotFoundError):  # of the run's own folder, which was no teacher's
        cards(run_dir, task, small_tokens, teachers)
    assert (other / "README.md").read_text() == "theirs"


def test_the_base_model_of_a_teacher_in_a_folder_is_what_its_card_says(tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model: Qwen/Qwen3-0.6B\n---\n# A teacher\n")
    assert hub_id(str(tmp_path)) == hub_id("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    (tmp_path / "README.md").unlink()
    assert hub_id(str(tmp_path)) is None
    assert hub_id(None) is hub_id("") is hub_id("runs/toy/sft/teacher") is None


@pytest.mark.parametrize("value", ["a | b", "[x](y)", "<script>", "`code`", "**x**", "a\n# b"])
def test_text_stays_text(value):
    assert not set(plain(value).replace("&#", "").replace("# b", "")) & set("|[]()<>`*#\n")


def test_a_title_with_backticks_does_not_leave_its_block(run_dir, task, small_tokens):
    items = task.interactions.items.with_columns(title=task.interactions.items["title"] + "```")
    odd = replace(task, interactions=replace(task.interactions, items=items))
    card = cards(run_dir, odd, small_tokens)["grpo"]
    assert "\n````text\n" in card
    assert "\n````\n" in card


def test_every_stage_is_told_in_words():
    supervised = {"sft", "pretrain", "direct", "taught", "distilled"}
    assert set(TEACHERS) == {*supervised, *RANK_TRAINED, *(stage.name for stage in CONTROLS)}
