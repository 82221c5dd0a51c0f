"""Limner as a service: `engine` runs jobs on one worker that owns the model; `app` speaks HTTP over it."""
