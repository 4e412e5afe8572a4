"""Settings of a world within their bounds."""

from collections.abc import Mapping


def check_bounds(config: object, bounds: Mapping[str, tuple[float, float | None]], world: str) -> None:
    """Checks numbers of a config.

    Args:
        config: has an attribute for each name.
        bounds: name → least and most; `None` for no most.
        world: named in the message.

    Raises:
        ValueError: one is out of its bounds; says which, and what was expected.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value < low or (high is not None and value > high):
            raise ValueError(f"{world}: {name} is {value}, expected {low} to {'any' if high is None else high}")
