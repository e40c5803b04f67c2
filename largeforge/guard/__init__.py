"""What stands between a client and what it asks for: each a class of pure ASGI."""
