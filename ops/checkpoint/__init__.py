"""Tensors on disk: readers behind one interface, plans, and the one writer of checkpoints."""
