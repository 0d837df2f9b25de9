"""Adapters of PEFT: files, their fields and targets, and the image that a device holds."""
