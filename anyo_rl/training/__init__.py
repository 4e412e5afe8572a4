"""Training the teacher: supervised start, and reinforcement on ranks, over TRL's trainers."""
