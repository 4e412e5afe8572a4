"""Somebody's LLM server: asked under a budget, with a journal, and its answers read."""
