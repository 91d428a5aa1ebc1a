"""Weights that others published, one module per ecosystem."""
