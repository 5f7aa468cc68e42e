"""Floor 3: a name becomes a loaded model."""
