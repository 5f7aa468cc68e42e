"""Floor 4: prompts become text."""
