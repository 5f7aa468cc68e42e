"""Floor 2: files and rows become texts."""
