"""Projections of machines that the RTL does not build, from the closed forms that it confirmed."""
