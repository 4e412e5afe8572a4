"""Rewards: what users swap. One small file per reward, loaded by `reward.load`.

A reward is a callable in TRL's own contract: `(prompts, completions, completion_ids, <columns>, **kwargs)` in, one
float or `None` per completion out.
"""
