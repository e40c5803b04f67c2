"""Checks of prepared rows: each looks at all of them and tells findings."""
