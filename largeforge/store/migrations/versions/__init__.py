"""One step a file; what is here once is never changed, only followed by another."""
