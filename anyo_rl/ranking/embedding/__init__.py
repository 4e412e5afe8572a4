"""Ranks by the distance of embeddings, as in BIGRec."""
