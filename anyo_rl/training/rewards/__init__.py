"""Rewards around a trainer: checked, set up, scheduled, limited in time."""
