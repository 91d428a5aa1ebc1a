"""The hash of a model's weights, by which files name the model that they are of."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> bytes:
    """16 bytes: of SHA-256 over the names in order, each with its numbers' bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + b"\0")
        found.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.digest()[:16]
