"""Floor 4: any checkpoint as something else, or told and compared."""
