"""Sampling with a vLLM engine."""
