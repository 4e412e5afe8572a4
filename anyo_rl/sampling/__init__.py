"""Sampling reasoning paths: prompts and sampling parameters in, completions with token ids out."""
