"""Emitted models against their checkpoints, file by file."""
