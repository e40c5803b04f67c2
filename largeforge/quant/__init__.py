"""How weights are held in memory."""
