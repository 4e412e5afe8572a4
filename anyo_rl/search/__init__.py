"""Asking a teacher: one answer for each example, with its ranks."""
