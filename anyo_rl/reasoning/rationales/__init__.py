"""Reasons from a strong LLM: what it is asked, and which of its answers can be used."""
