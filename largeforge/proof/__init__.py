"""What shows that it is right: one file per kind of artifact or check."""
