"""Floor: files become batches of tokens."""
