"""Asking what was trained: the recommender, and the service with its page."""
