"""Closed forms of the cycles that the hardware takes."""
