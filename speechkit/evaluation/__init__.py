"""What `speechkit eval` measures: one file for each kind of model."""
