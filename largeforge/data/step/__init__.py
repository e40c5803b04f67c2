"""Steps of `task=prepare`: each takes rows and gives rows."""
