"""Streams as pure functions over explicit state."""
