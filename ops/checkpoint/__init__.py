"""Floor 2: tensors on disk: readers behind one interface, plans, and the one writer of checkpoints."""
