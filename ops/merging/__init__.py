"""Merging: recipes, methods and the arithmetic of one tensor."""
