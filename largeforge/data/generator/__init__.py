"""Generators: what makes rows from templates or with a teacher."""
