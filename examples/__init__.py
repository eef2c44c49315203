"""Tasks of the kind a person writes: see the README, "Your own task"."""
