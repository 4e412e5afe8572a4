"""The LLM that recommends: its tokens and its weights, before any catalog."""
