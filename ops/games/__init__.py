"""Forty games of many turns after MTR-Bench (arXiv 2505.17123): a model asks, moves or answers, a program replies."""
