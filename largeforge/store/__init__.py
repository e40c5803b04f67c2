"""What several doors share, in a database."""
