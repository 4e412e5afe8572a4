"""Interaction logs into validated tables, examples and prompts.

`load.load_interactions` reads a log, `splits.make_examples` makes train, validation and test examples of it, and
`prompts.render_prompt` writes a history as the teacher reads it.
"""
