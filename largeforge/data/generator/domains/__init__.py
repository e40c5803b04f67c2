"""Prompt sets (domains) that ship with LargeForge: one YAML each."""
