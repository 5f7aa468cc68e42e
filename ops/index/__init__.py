"""Floor 3: vectors on disk."""
