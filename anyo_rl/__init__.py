"""anyo-rl: language-model recommenders that reason first, trained on the rank of the item the user really chose."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyo_rl.serve.recommender import Recommender as Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    """`Recommender`, which brings torch and transformers along, when it is asked for."""
    if name == "Recommender":
        return import_module("anyo_rl.serve.recommender").Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
