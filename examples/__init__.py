"""Tasks of the kind a person writes: see docs/your-own-task.md."""
