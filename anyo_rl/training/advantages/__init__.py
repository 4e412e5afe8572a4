"""What the tokens of a sampled reasoning are credited with: one file a method."""
