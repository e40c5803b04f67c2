"""Template sets that ship with LargeForge: one YAML each."""
