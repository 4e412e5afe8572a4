"""Teachers that call tools: what they may call, episodes, lessons of solved plans, training, and what came of it."""
