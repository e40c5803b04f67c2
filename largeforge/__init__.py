"""LargeForge: from a config to a trained, proven and served language model. Imports nothing heavy."""

__version__ = "0.5.0"
