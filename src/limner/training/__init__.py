"""Tasks, the one loop, checkpoints, EMA."""
