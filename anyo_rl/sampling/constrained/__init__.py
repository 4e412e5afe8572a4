"""Decoding that is held to the items of a catalog."""
