"""The embedded toy world: a data set whose best recommender is known."""
