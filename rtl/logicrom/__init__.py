"""Read-only memories as standard-cell logic."""
