"""Kinds of reasoning: what a prompt shows besides the history, what is written, and with which type of answer."""
