"""Prompts that ask an LLM for a rationale: a file that a user can edit, filled in with titles that stay data.

The file is YAML: `user` (a message) and, if wanted, `system`; or `text` alone, for a server's completions endpoint.
Each is a Jinja template. Placeholders, all of them text:

    history      the titles of the history, one a line, oldest first
    target       the title of the item chosen next (kind post_hoc only)
    candidates   the titles to choose from, one a line; empty where there is no list (kind blind only)

What is filled in is never read as a template, and holds no tag (`anyo_rl.data.text.escape_tags`): a list that the
template puts between tags ends where the template ends it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from anyo_rl.data.schema import DataError
from anyo_rl.data.text import escape_tags

Kind = Literal["post_hoc", "blind"]
PLACEHOLDERS: dict[Kind, tuple[str, ...]] = {"post_hoc": ("history", "target"), "blind": ("history", "candidates")}


@dataclass(frozen=True)
class RationalePrompt:
    """A prompt with placeholders.

    Attributes:
        parts: `system` and `user`, `user`, or `text`, each with its template.
        source: the file's text: it is part of what a run was made with.
        kind: which placeholders there are.
    """

    parts: Mapping[str, Template]
    source: str
    kind: Kind

    def render(
        self, history: Sequence[str], target: str, candidates: Sequence[str] = ()
    ) -> str | list[dict[str, str]]:
        """The prompt of one example: messages, or text where the file has `text`.

        Args:
            history: clean titles (`anyo_rl.reasoning.prompts.history_lines`), oldest first.
            target: the clean title of the item chosen next; not shown where the kind is `blind`.
            candidates: clean titles to choose from; not shown where the kind is `post_hoc`.

        Raises:
            DataError: the template asks for something that is not there.
        """
        shown = {
            "history": "\n".join(map(escape_tags, history)),
            "target": escape_tags(target),
            "candidates": "\n".join(map(escape_tags, candidates)),
        }
        values = {name: shown[name] for name in PLACEHOLDERS[self.kind]}
        try:
            written = {part: template.render(values).strip() for part, template in self.parts.items()}
        except Exception as error:  # a template can go wrong in any way, and all it is given is text
            raise DataError(f"the prompt can't be filled in: {error}; it has {_names(self.kind)}, all text") from None
        if "text" in written:
            return written["text"]
        return [{"role": role, "content": written[role]} for role in ("system", "user") if role in written]


def load_prompt(file: Path, kind: Kind, *, with_candidates: bool = False) -> RationalePrompt:
    """Reads a prompt file.

    Args:
        file: the YAML file.
        kind: which placeholders it may have.
        with_candidates: whether it has to show candidates.

    Raises:
        DataError: no such file, other parts than expected, a template that is none, a placeholder that is unknown, or
            one that it can't do without.
    """
    if not file.is_file():
        raise DataError(f"found no prompt file {file}: name one by prompt_path, or leave it out for the shipped one")
    source = file.read_text(encoding="utf-8")
    try:
        parts = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise DataError(f"{file} is no YAML: {error}") from None
    if not isinstance(parts, dict) or set(parts) not in ({"user"}, {"system", "user"}, {"text"}):
        found = sorted(map(str, parts)) if isinstance(parts, dict) else type(parts).__name__
        raise DataError(f"{file} has {found}: expected user, or system and user, or text alone")
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    used: set[str] = set()
    templates = {}
    for part, text in parts.items():
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{file}: {part} is {text!r}, expected text")
        try:
            used |= meta.find_undeclared_variables(environment.parse(text))
            templates[part] = environment.from_string(text)
        except TemplateError as error:
            raise DataError(f"{file}: {part} is no template: {error}; {{{{ history }}}} is a placeholder") from None
    unknown = sorted(used - set(PLACEHOLDERS[kind]))
    if unknown:
        raise DataError(f"{file}: unknown placeholder {', '.join(unknown)}; a {kind} prompt has {_names(kind)}")
    needed = {"history", "target"} if kind == "post_hoc" else {"history", *(["candidates"] if with_candidates else [])}
    if needed - used:
        raise DataError(f"{file} has no placeholder {', '.join(sorted(needed - used))}: the LLM would not see it")
    return RationalePrompt(templates, source, kind)


def _names(kind: Kind) -> str:
    return " and ".join(PLACEHOLDERS[kind])
