"""Rows: read, checked, tokenized, cached, batched."""
