"""Calibration of sampled answers (arXiv 2505.24147): votes, measures, the line over tasks, and rationales."""
