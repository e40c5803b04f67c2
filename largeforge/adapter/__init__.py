"""Which parameters learn."""
