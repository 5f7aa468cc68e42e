"""Floor: a name becomes a loaded model."""
