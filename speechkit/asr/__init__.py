"""Recognition: audio to text."""
