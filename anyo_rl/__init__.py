"""anyo-rl: language-model recommenders that reason first, trained on the rank of the item the user really chose."""

__version__ = "0.1.0"
