"""The stories: one verb a file, read from top to bottom."""
