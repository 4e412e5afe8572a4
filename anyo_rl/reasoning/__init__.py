"""What a teacher reads and learns to write: prompts, rows, rationales."""
