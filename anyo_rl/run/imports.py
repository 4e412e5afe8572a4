"""Objects named by the user: `my_package.my_module.my_thing`, or `path/to/file.py:my_thing`.

A dotted path is looked up in what is installed and in the current folder. Nothing is imported before it is asked for.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Named:
    """Something that the user named, and how messages speak of it.

    Attributes:
        what: it is: `reward`, `reasoning kind`.
        spec: the name as the user wrote it.
        short_names: those that may stand in its place.
        parameters_in: where its parameters are given.
    """

    what: str
    spec: str
    short_names: Iterable[str]
    parameters_in: str

    def __str__(self) -> str:
        return f"{self.what} {self.spec!r}"

    @property
    def example(self) -> str:
        """What one of the user's own might be called."""
        return f"my_{self.what.split()[-1]}"

    @property
    def unknown(self) -> ValueError:
        """That it is neither a short name nor a path."""
        return ValueError(
            f"unknown {self}: {choices(self.spec, self.short_names)}; or a dotted path "
            f"(my_package.my_module.{self.example}), or a file (path/to/{self.example}.py:{self.example})"
        )


def import_named(named: Named, path: str) -> Any:
    """The object that a dotted path or a `file.py:name` points at.

    Args:
        named: for messages.
        path: the path; the name itself, unless that is a short one.

    Raises:
        ValueError: the path is not complete, or there is no such module or object.
        FileNotFoundError: there is no such file.
    """
    module_path, separator, attribute = path.rpartition(":" if ":" in path else ".")
    own = named.example
    if path.endswith(".py"):
        raise ValueError(f"{named} names a file but nothing in it: write {named.spec}:{own}")
    if not module_path or not attribute:
        raise ValueError(f"{named} is not complete: write path/to/{own}.py:{own} or my_module.{own}")
    if separator == ":" and module_path.endswith(".py"):
        module = _load_file(named, Path(module_path))
    else:
        module = _load_module(named, module_path)
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ValueError(f"{named}: {module_path} has no {attribute!r}; {choices(attribute, public)}")
    return getattr(module, attribute)


def _load_file(named: Named, path: Path) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(f"{named}: there is no file {path} (looked in {file.parent})")
    # Under a name of its own in sys.modules, as pickle and dataclasses look there; loaded once, however often named.
    name = f"_named_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{named}: {path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        error.add_note(f"while loading {named}")
        raise
    return module


def _load_module(named: Named, module_path: str) -> ModuleType:
    # A script's own folder is on the path, the folder it is started from is not. Last, so that it shadows nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and (module_path == error.name or module_path.startswith(error.name + ".")):
            raise ValueError(
                f"{named}: there is no module {error.name!r} here or among the installed packages; "
                f"for a file write path/to/{named.example}.py:{named.example}, for a short name "
                f"{choices(named.spec, named.short_names)}"
            ) from error
        error.add_note(f"while loading {named}")
        raise


def check_parameters(
    named: Named, target: Callable[..., Any], kwargs: Mapping[str, Any], *, complete: bool = True
) -> None:
    """Checks parameters against a signature.

    Args:
        named: for messages.
        target: what is going to be called.
        kwargs: the parameters.
        complete: whether these are all, or others come with each call.

    Raises:
        ValueError: there is no such parameter, or one is missing; says which.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some built-ins have no signature; the call itself will tell
        return
    own = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    # **kwargs may be parameters, or else the columns of each call, which would swallow any slip of the pen.
    open_ended = complete and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in kwargs:
        if name not in own and not open_ended:
            raise ValueError(f"{named} has no parameter {name!r}: {choices(name, own)}")
    missing = [name for name in own if parameters[name].default is inspect.Parameter.empty and name not in kwargs]
    if complete and missing:
        raise ValueError(f"{named} needs {', '.join(missing)}: give it in its parameters ({named.parameters_in})")


def choices(word: str, known: Any) -> str:
    """`known ones are a, b (did you mean a?)`."""
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return f"known are {', '.join(map(str, known)) or 'none'}{hint}"
