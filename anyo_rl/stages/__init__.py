"""The stages of a run: what recipes call."""
