"""What a setting may be: its type, as its dataclass says it, and its bounds, which stand beside it."""

import contextlib
import dataclasses
import enum
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
LONGEST_SHOWN = 60


class UsageError(ValueError):
    """Something that the user can fix; the message says all there is to say, so no traceback is shown."""


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may be; finite ones alone. As metadata of a field, `"bounds": Bounds(0, 1)`.

    Attributes:
        least: allowed, and nothing below.
        most: allowed, and nothing beyond.
        above: the number itself is not allowed, nor what is below.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        return abs(value) < math.inf and self.least <= value <= self.most and value > self.above

    def __str__(self) -> str:
        low = f"above {_number(self.above)}" if self.above > -math.inf else _number(self.least)
        if self.most == math.inf:
            return low if self.above > -math.inf else f"{low} or more"
        return f"{low}{' and up' if self.above > -math.inf else ''} to {_number(self.most)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def check_bounds(instance: Any, bounds: Mapping[str, Bounds] | None = None, of: str = "") -> None:
    """Checks numbers against their bounds; `None` is a number that was not set, and each of a list counts.

    Args:
        instance: a dataclass.
        bounds: name to bounds; those in the metadata of its fields if `None`. Names that it lacks are left out.
        of: what the message begins with.

    Raises:
        UsageError: one is out of its bounds; says which, and what was expected.
    """
    if bounds is None:
        bounds = {one.name: one.metadata["bounds"] for one in dataclasses.fields(instance) if "bounds" in one.metadata}
    for name, expected in bounds.items():
        value = getattr(instance, name, None)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and number not in expected:
                raise UsageError(f"{of}{name} is {str(value)[:LONGEST_SHOWN]}: expected {expected}")


def fitted(name: str, value: Any, annotation: Any) -> Any:
    """A value as the annotation of its setting has it, which says what YAML could be told.

    Args:
        name: of the setting.
        value: what was given; a single one stands for a list of it, as on the command line.
        annotation: a type, a union of types, `Literal`, `list[...]`, `dict[...]`.

    Raises:
        UsageError: it is of another type; says which, what was found, and what was expected.
    """
    if fits(value, annotation):
        return value
    if not isinstance(value, list | dict) and fits([value], annotation):
        return [value]
    raise UsageError(f"{name} is {_shown(value, annotation)}; expected {_in_words(annotation)}")


def mapping_of(name: str, value: Any, example: str) -> Any:
    """A setting that is a mapping: from YAML as it is, from the command line out of its JSON; `None` if it is unset.

    Args:
        name: of the setting.
        value: what was given.
        example: what it may look like in JSON.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    if value is not None and not isinstance(value, dict):
        raise UsageError(f"{name} is {value!r}: expected a mapping in YAML, or JSON on the command line: {example}")
    return value


def all_fitted(kind: type, settings: Mapping[str, Any], of: str) -> Mapping[str, Any]:
    """The settings of a dataclass that come as a mapping, each of its type.

    Args:
        kind: the dataclass, which has all of these names.
        settings: by name.
        of: what the mapping is called.

    Raises:
        UsageError: one is of another type.
    """
    annotations = typing.get_type_hints(kind)
    return {name: fitted(f"{of}.{name}", value, annotations[name]) for name, value in settings.items()}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type; a whole number is a number too, and what is no number (NaN) is none."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Annotated:
        return fits(value, inner[0])
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (list, tuple, set):
        return isinstance(value, list | tuple | set) and all(fits(each, inner[0]) for each in value if inner)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return isinstance(value, annotation) or value in [one.value for one in annotation]
    if isinstance(annotation, type) and annotation is not typing.Any:
        return isinstance(value, annotation)
    return True  # what an annotation of another kind means is not known here


def _in_words(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(one) for one in inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if annotation is dict or origin is dict:
        return f"a mapping to {_in_words(inner[1])}" if inner and inner[1] not in (Any, object) else "a mapping"
    if annotation is list or origin in (list, tuple, set):
        return f"a list, each {_in_words(inner[0])}" if inner else "a list"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return f"one of {', '.join(str(one.value) for one in annotation)}"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _shown(value: Any, annotation: Any) -> str:
    """What was found; mappings, and what stands in place of one, are not shown, since they may hold a secret."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, str) and "a mapping" in _in_words(annotation):
        return "a text"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"
