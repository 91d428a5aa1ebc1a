"""Tokens that are learned from what can still be recognised of speech in them."""
