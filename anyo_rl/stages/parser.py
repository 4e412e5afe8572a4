"""TRL's parser for our dataclasses, whose fields say more of a setting than argparse takes."""

import copy
import dataclasses
import sys
import typing
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from anyo_rl.run.settings import UsageError, fitted
from anyo_rl.stages.checks import check_numbers

OURS = {"free", "bounds"}  # words of metadata that are not argparse's: see `anyo_rl.run.folder` and `.settings`


class _OnceEach(yaml.SafeLoader):
    """YAML in which no name comes twice: of two the last would count, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """What YAML makes of a mapping, and an error where a name comes twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise UsageError(f"{key.value} is set twice, again in line {key.start_mark.line + 1}: keep one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_settings(path: Path) -> Mapping[str, Any]:
    """The settings in a YAML file, by name; none where it is empty.

    Raises:
        UsageError: it holds something else, or one of them twice; says which, and where.
    """
    try:
        found = _OnceEach(path.read_text(encoding="utf-8")).get_single_data()
    except UsageError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # no YAML; too deep; no text, or no such date
        raise UsageError(f"no YAML can be read there: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        kind = "other names" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise UsageError(f"expected a setting in each line, as `name: value`; found {kind}")
    return found


class SettingsParser(TrlParser):
    """Keeps from argparse what in a field's metadata is ours, and takes values of a setting's own type alone.

    argparse converts flags, and what YAML says as a text; all else in YAML would go on as it is.
    """

    def __init__(self, dataclass_types: Sequence[type]) -> None:
        super().__init__(dataclass_types)
        # Defaults are a dataclass's own affair: libraries annotate some of them as what they are not.
        self.own = {action.dest: action.default for action in self._actions}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Namespace, list[str]]:
        """Parses, and checks what was given before a dataclass computes with it.

        Raises:
            UsageError: a value is of another type than its setting, or out of its bounds.
        """
        found, rest = super().parse_known_args(args, namespace)
        for kind in typing.cast(Sequence[type], self.dataclass_types):
            annotations = typing.get_type_hints(kind)
            for item in dataclasses.fields(kind):
                value, own = getattr(found, item.name, None), self.own.get(item.name)
                if item.init and (type(value) is not type(own) or value != own):
                    setattr(found, item.name, fitted(item.name, value, annotations[item.name]))
            check_numbers(found, kind)
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with a flag in one line: the usage would bury it under hundreds."""
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    @staticmethod
    def _parse_dataclass_field(parser: ArgumentParser, field: dataclasses.Field) -> None:
        shown = copy.copy(field)
        shown.metadata = MappingProxyType({name: value for name, value in field.metadata.items() if name not in OURS})
        TrlParser._parse_dataclass_field(parser, shown)
        field.type = shown.type  # without its `None`, as the parser leaves it
