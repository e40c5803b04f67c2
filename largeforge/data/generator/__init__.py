"""Generators of `task=generate`: each makes rows, from templates or with a teacher."""
