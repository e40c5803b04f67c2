"""The group serve: the door that clients see, and the engine servers behind it."""
