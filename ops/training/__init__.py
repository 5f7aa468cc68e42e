"""Floor 5: data, loss, and the loop that trains."""
