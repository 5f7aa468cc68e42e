"""Floor 4: several checkpoints become one: recipes, methods, arithmetic, sweeps."""
