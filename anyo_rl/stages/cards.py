"""The model card of a finished teacher: what it was trained on and how, its results, how to ask it, and its limits.

A finished stage keeps a whole teacher, LoRA merged, in Hugging Face's format: with its card, `README.md` beside the
weights, the folder can be served or uploaded as it lies. An evaluation of the run writes the card anew.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.item_tokens import SEMANTIC_IDS
from anyo_rl.data.task import Task
from anyo_rl.evaluation.stages import CARD_SETTINGS, DIRECT, PRETRAIN, SFT, STAR, stage_of
from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.reasoning.rows import make_prompt
from anyo_rl.run.files import read_json, write_whole
from anyo_rl.run.folder import CONFIG, METRICS, PRETRAINING, ROUNDS, WARM_START, read_arguments, read_metrics
from anyo_rl.teacher.tokens import THINK_START, Tokens

CARD = "README.md"
SCRATCH = "a small Qwen3 made from scratch for this data"
# The section of a stage's settings, where those of a later stage stand under the names of their classes.
OWN = {SFT.name: WARM_START, DIRECT.name: WARM_START, PRETRAIN.name: PRETRAINING, STAR.name: ROUNDS}
# Settings of these are described in words, or belong to the stages before.
APART = {"DataArguments", "ModelConfig", "TeacherArguments", *OWN.values()}


def write_cards(
    run_dir: Path,
    task: Task,
    teachers: Mapping[str, Path | str],
    tokens: Tokens,
    catalog: Catalog,
    summary: Summary,
) -> None:
    """Writes the card of each teacher that the run itself made; those that came from elsewhere keep theirs.

    Args:
        run_dir: the run folder.
        task: the data.
        teachers: stage name to teacher, as they were evaluated.
        tokens: their tokenizer and marker.
        catalog: in these tokens.
        summary: of the run.
    """
    for stage, path in teachers.items():
        folder = Path(path)
        if folder.is_dir() and folder.resolve().is_relative_to((run_dir / stage).resolve()):
            write_whole(folder / CARD, card(run_dir, task, stage, tokens, catalog, summary))


def card(run_dir: Path, task: Task, stage: str, tokens: Tokens, catalog: Catalog, summary: Summary) -> str:
    """The text of a card, with no path of this machine and no secret in it (see `write_cards`)."""
    arguments = read_arguments(run_dir) if (run_dir / CONFIG).is_file() else {}
    base = arguments.get("ModelConfig", {}).get("model_name_or_path")
    data = ModelCardData(
        base_model=hub_id(base),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["recommendation", "reasoning", "anyo-rl", "trl", stage],
    )
    dataset = plain(summary.dataset)
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# A recommender: {stage} on {dataset}",
        _opening(stage),
        "## Training",
        _table(_training(run_dir, task, stage, arguments, base)),
        "## Asking it",
        _asking(task, stage, tokens, catalog),
        "## Evaluation",
        markdown_table(replace(summary, dataset=dataset)).strip(),
        "Ranks are over the whole catalog, read off the model item by item, but for rows of what was written. Text "
        "that it writes freely may spell an item that is not in the catalog, and was measured in rows of such a name "
        "alone.",
        "## Licence",
        "None is set here. The weights come under the licence of the base model; the terms of the data hold for what "
        "was learned from it, and for the titles that the model writes. Look at both before you pass it on.",
        "## Versions",
        _versions(run_dir),
        "Written by anyo-rl, and written anew when the run is evaluated again.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(value: Any) -> str:
    """A value as text that Markdown and HTML take for text alone; of a path on this machine only its name.

    >>> plain("logs/<b>.csv|x"), plain(["ndcg", "~/mine/my_reward.py:short"]), plain("Qwen/Qwen3-0.6B")
    ('logs/&#60;b&#62;.csv&#124;x', 'ndcg, my_reward.py:short', 'Qwen/Qwen3-0.6B')
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    text = " ".join(str(value).split())
    path = Path(text)
    if path.is_absolute() or text.startswith((".", "~")) or ("/" in text and Path(text.partition(":")[0]).exists()):
        text = path.name
    return re.sub(r"[^\w\s.,:;/+=-]", lambda found: f"&#{ord(found[0])};", text)


def hub_id(base: str | None) -> str | None:
    """The base model's name on the hub; of a folder the one that its own card tells; `None` where there is none."""
    if base and Path(base).is_dir():
        file = Path(base) / CARD
        told = ModelCard(file.read_text(encoding="utf-8")).data.get("base_model") if file.is_file() else None
        return told if isinstance(told, str) else None
    try:
        validate_repo_id(base or "")
    except HFValidationError:
        return None
    return base


def _opening(stage: str) -> str:
    what = "It reads what a user chose and names the item chosen next"
    if not stage_of(stage).reasons:
        return f"{what}. It does not reason: it stands beside teachers that do, to compare with."
    return f"{what}, after reasoning in short lines: `<history> -> <reasoning> -> <item>`."


def _training(
    run_dir: Path, task: Task, stage: str, arguments: Mapping[str, Mapping[str, Any]], base: str | None
) -> list[tuple[str, str]]:
    """Rows of the table of what the teacher was made from, and how; only what is known."""
    model, data = arguments.get("ModelConfig", {}), task.args
    origin = hub_id(base)
    made = plain("/".join(Path(base).parts[-2:]) if base and Path(base).is_dir() else base or SCRATCH)
    of_model = [
        ("base model", made if origin in (None, base) else f"{made}, made from {plain(origin)}"),
        ("weights", _weights(model)),
    ]
    rows = [
        ("stage", stage_of(stage).made_by or stage),
        *(of_model if model else []),
        ("data", f"{plain(data.dataset)}, split {plain(data.split)}, {len(task.split('train')):,} training examples"),
        *([("rationales", f"of {len(task.rationales):,} of them")] if stage == SFT.name else []),
        ("catalog", f"{len(task.interactions.items):,} items"),
    ]
    if stage not in (SFT.name, DIRECT.name) and (before := _updates(run_dir, SFT.name)):
        rows.append(("before it", f"{SFT.made_by}, {before:,} updates"))
    if updates := _updates(run_dir, stage):
        rows.append(("updates", f"{updates:,}; of the checkpoints the best on validation is kept"))
    own = OWN.get(stage, "")
    warm = own in arguments
    sections = [own] if warm else [name for name in arguments if name not in APART]
    settings = {name: value for section in sections for name, value in arguments[section].items()}
    known = [(name, settings[name]) for name in CARD_SETTINGS if settings.get(name) is not None]
    if not warm and arguments.get("TeacherArguments"):
        most = arguments["TeacherArguments"].get("max_reasoning_tokens")
        known += [("max_reasoning_tokens", most)] if most is not None else []
    return rows + [(f"`{name}`", plain(value)) for name, value in known]


def _weights(model: Mapping[str, Any]) -> str:
    if not model.get("use_peft"):
        return "all trained"
    layers = plain(model.get("lora_target_modules") or "the layers that peft takes by default")
    bits = "4-bit" if model.get("load_in_4bit") else "8-bit" if model.get("load_in_8bit") else ""
    return (
        f"LoRA of rank {model.get('lora_r')}, alpha {model.get('lora_alpha')}, on {layers}"
        f"{f', over {bits} weights' if bits else ''}; merged"
    )


def _updates(run_dir: Path, stage: str) -> int:
    """The last step that a stage logged; 0 where it logged none."""
    rows = read_metrics(run_dir / METRICS)[0]
    return max((row.get("step", 0) for row in rows if row.get("stage") == stage), default=0)


def _asking(task: Task, stage: str, tokens: Tokens, catalog: Catalog) -> str:
    """How to prompt the teacher: an example from the catalog, the marker, and a server."""
    prompt = make_prompt(task, catalog.item_ids[:3], catalog, tokens)
    chat = task.args.prompt_style == "chat"
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, indent=1, ensure_ascii=False)
    marker = tokens.tokenizer.convert_ids_to_tokens(tokens.marker_id)
    item = "the item's title" if catalog.by_title else f"the item's added tokens (`{SEMANTIC_IDS}`)"
    of_chat = f", under the chat template{_told(tokens)}" if chat else ", plain text that ends with a line break"
    extra = f'{{"ignore_eos": true, "stop_token_ids": [{tokens.eos_id}]}}'
    named, behind = f"the token `{marker}` ({tokens.marker_id})", "two line breaks, " if tokens.thinks else ""
    if stage_of(stage).reasons:
        tag = "`<think>` (where the prompt does not end with it), " if tokens.thinks else ""
        after = f"It writes {tag}its reasoning, a step a line, then the marker, {named}, {behind}and then {item}."
    else:
        thought = rf"an empty thought, `{THINK_START}\n\n{marker}\n\n`" if tokens.thinks else f"the marker, {named}"
        after = f"Then comes {thought}, which is put behind the prompt, and then {item}."
    return "\n\n".join(
        [
            f"The prompt{of_chat}, oldest item first:",
            _fenced(text),
            f"{after} The answer is the item with the highest probability behind the marker: rank the catalog there "
            f"(`anyo_rl.ranking`), or let it be written.",
            "`vllm serve FOLDER` needs nothing else."
            + (
                ""
                if not stage_of(stage).reasons
                else " Generation ends at the marker (`generation_config.json`); a request with "
                f"`{extra}` goes on to the item."
            ),
        ]
    )


def _told(tokens: Tokens) -> str:
    return f" with {plain(dict(tokens.chat_template_kwargs))}" if tokens.chat_template_kwargs else ""


def _fenced(text: str) -> str:
    """A block of text as it is, whatever it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _versions(run_dir: Path) -> str:
    file = run_dir / "versions.json"
    if not file.is_file():
        return ""
    known = read_json(file)
    names = [name for name in known if name not in ("num_processes", "distributed_type")]
    launch = f"; {known.get('num_processes')} process(es), {plain(known.get('distributed_type'))}"
    return ", ".join(f"{name} {plain(known[name])}" for name in names) + launch


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
