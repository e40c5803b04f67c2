"""What stands between a client and what it asks for."""
