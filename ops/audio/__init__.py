"""Sound files, spoken dialogues, and what a judge of them is worth."""
