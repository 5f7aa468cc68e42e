"""PolyMath (arXiv 2504.18428): its strings, its questions through a writer, and the scores of answers."""
