"""MARGE (arXiv 2505.12500): solutions gone on with from their intermediate states, and rows to train on."""
