"""Reasons: where the first rationales come from."""
