"""Is this answer right: boxes, equality, a worker with a time limit, languages; and what is made of verdicts."""
