"""`steps`: free steps of words, then an item. The history is all that prompts show."""

from anyo_rl.reasoning.kinds.kind import Kind


def steps() -> Kind:
    """The kind that everything begins with."""
    return Kind("steps")
