"""Whole machines and their shells: what a generated design consists of."""
