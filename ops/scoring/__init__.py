"""Floor 4: texts become vectors or numbers."""
