"""What the site's pages are made of besides Markdown: tables of settings, from the dataclasses that recipes parse."""

import dataclasses
import re
from importlib import import_module
from typing import Any

SETTINGS = {
    "The data": ("anyo_rl.data.task", "DataArguments"),
    "The teacher": ("anyo_rl.stages.arguments", "TeacherArguments"),
    "Reinforcement": ("anyo_rl.stages.arguments", "ReasonerArguments"),
    "The sequence stage": ("anyo_rl.stages.pretrain", "SequenceArguments"),
    "Agents": ("anyo_rl.stages.agent_arguments", "AgentArguments"),
    "Students": ("anyo_rl.stages.student_arguments", "StudentArguments"),
    "Searches": ("anyo_rl.stages.search_arguments", "SearchArguments"),
    "A server": ("anyo_rl.stages.server_arguments", "ServerArguments"),
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adds the tables to the page of settings."""
    if page.file.src_uri != "reference/settings.md":
        return markdown
    return "\n".join([markdown, *(section(title, *where) for title, where in SETTINGS.items())])


def section(title: str, module: str, name: str) -> str:
    """The settings of a dataclass as a table, under a heading."""
    kind = getattr(import_module(module), name)
    rows = [f"| `{field.name}` | {default(field)} | {words(field)} |" for field in dataclasses.fields(kind)]
    return "\n".join([f"## {title}", f"`{name}`: {(kind.__doc__ or '').splitlines()[0]}", "", TABLE, *rows, ""])


TABLE = "| setting | default | |\n|---|---|---|"


def default(field: dataclasses.Field) -> str:
    """The default as YAML would have it; empty where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return ""
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def words(field: dataclasses.Field) -> str:
    """What a setting does, safe inside a table."""
    told = re.sub(r"\s+", " ", str(field.metadata.get("help", "")))
    return told.replace("|", "\\|").replace("<", "&lt;")
