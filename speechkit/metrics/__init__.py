"""Figures of quality, thin over the libraries that define them."""
