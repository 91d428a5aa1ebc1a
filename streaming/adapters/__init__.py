"""Wire protocols: our own, and those of other systems whose clients people have."""
