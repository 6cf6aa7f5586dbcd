"""Training: one jitted step, the loop around it, checkpoints, telemetry."""
