"""Corpora: manifests, batches by duration, augmentation and the embedded corpus."""
