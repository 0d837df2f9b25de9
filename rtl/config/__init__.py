"""Configurations of the hardware: frozen, checked, as JSON."""
