"""Floor 1: what every room uses: errors, events, choices, settings, pictures."""
