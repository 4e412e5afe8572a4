"""A kind of reasoning by its name: one of `KINDS`, a dotted path, or `path/to/file.py:name`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from anyo_rl.reasoning.kinds.cot_rec import cot_rec
from anyo_rl.reasoning.kinds.kind import Kind
from anyo_rl.reasoning.kinds.latent import latent
from anyo_rl.reasoning.kinds.listwise import listwise
from anyo_rl.reasoning.kinds.profile import profile
from anyo_rl.reasoning.kinds.retrieval import retrieval
from anyo_rl.reasoning.kinds.steps import steps
from anyo_rl.reasoning.kinds.yes_no import yes_no
from anyo_rl.run.imports import Named, check_parameters, import_named
from anyo_rl.run.settings import UsageError, fitted

KINDS: dict[str, Callable[..., Kind]] = {
    "steps": steps,
    "retrieval": retrieval,
    "cot_rec": cot_rec,
    "profile": profile,
    "latent": latent,
    "listwise": listwise,
    "yes_no": yes_no,
}


def load_kind(name: str, settings: Mapping[str, object] | None = None) -> Kind:
    """Makes a kind of its settings.

    Args:
        name: of `KINDS`, or where a function that makes a kind is found.
        settings: its parameters.

    Raises:
        UsageError: there is no such kind or setting, a setting is wrong, or what was named makes no kind; says which.
    """
    named = Named("reasoning kind", name, KINDS, "kind_settings")
    try:
        if name not in KINDS and not {".", ":"} & set(name):
            raise named.unknown
        make = KINDS[name] if name in KINDS else import_named(named, name)
        if not callable(make):
            raise ValueError(f"{named} is a {type(make).__name__}, expected a function that makes a Kind")
        check_parameters(named, make, settings or {})
        hints = get_type_hints(make) if inspect.isfunction(make) else {}
        told = {
            key: fitted(f"{key} of {named}", value, hints.get(key, Any)) for key, value in (settings or {}).items()
        }
        kind = make(**told)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    except SystemExit as error:  # the run would end as if all were well
        raise UsageError(
            f"{named} called sys.exit({error.code!r}) while it was loaded: what a script does goes below "
            "`if __name__ == '__main__':`"
        ) from error
    if not isinstance(kind, Kind):
        raise UsageError(f"{named} made a {type(kind).__name__}, expected an anyo_rl.reasoning.kinds.kind.Kind")
    return kind
