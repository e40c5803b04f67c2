"""How a method runs over data: devices, precision, checkpoints, resume."""
