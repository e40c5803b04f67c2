"""From argv to a checked, typed config: compose, check, origin, recipes, help. Imports nothing heavy."""
