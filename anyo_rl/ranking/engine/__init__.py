"""Exact ranks under the policy: a bounded search of the tree of items."""
