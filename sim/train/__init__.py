"""Training of the shipped models and adapters on text that every Python has."""
