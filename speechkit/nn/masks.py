"""Masks over time: what is valid, and which steps a step may see."""

import torch
from torch import Tensor

STYLES = ("regular", "chunked_limited")
MAX_CONTEXT = 100_000  # steps, hours of speech: more is damage or malice, and no memory holds it


def valid_mask(lengths: Tensor, time: int) -> Tensor:
    """(batch,) lengths -> (batch, time) bool, true where an entry is valid."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def complete(lengths: Tensor, time: int) -> bool:
    """Whether all rows are as long as their batch; never while a graph is made, nor where one would have to wait."""
    if torch.compiler.is_compiling() or lengths.device.type != "cpu":
        return False
    return bool((lengths == time).all())


def ended(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, time, dim), zero after each row's end."""
    return x if complete(lengths, x.shape[1]) else x * valid_mask(lengths, x.shape[1])[..., None]


def context_mask(query: Tensor, key: Tensor, context: tuple[int, int], style: str) -> Tensor:
    """Which keys each query may see.

    Args:
        query: (..., queries) int64 positions in steps from the stream's start.
        key: (..., keys) int64 positions.
        context: left and right context in steps, -1 for no limit.
        style: ``regular``: ``-left <= key - query <= right``; ``chunked_limited``: the query's own chunk of
            ``right + 1`` steps and as many chunks before it as fit into `left` (Noroozi et al. 2023, section 3.2).

    Returns:
        (..., queries, keys) bool.
    """
    left, right = context
    distance = key[..., None, :] - query[..., :, None]
    if style == "chunked_limited" and right >= 0:
        chunk = right + 1
        distance = (
            key.div(chunk, rounding_mode="floor")[..., None, :] - query.div(chunk, rounding_mode="floor")[..., None]
        )
        left = left // chunk if left >= 0 else left
        right = 0
    mask = torch.ones_like(distance, dtype=torch.bool)
    if right >= 0:
        mask = mask & (distance <= right)
    if left >= 0:
        mask = mask & (distance >= -left)
    return mask


def check_context(context: tuple[int, int], style: str) -> None:
    """Refuses contexts that are no grid: a chunked left context is a whole number of chunks."""
    left, right = context
    if style not in STYLES:
        raise ValueError(f"attention style must be one of {', '.join(STYLES)}, got {style!r}")
    if not (-1 <= left <= MAX_CONTEXT and -1 <= right <= MAX_CONTEXT):
        raise ValueError(f"context must be [left, right] up to {MAX_CONTEXT}, -1 for no limit, got {list(context)}")
    if style == "chunked_limited" and left > 0 and right > 0 and left % (right + 1):
        raise ValueError(f"chunked_limited needs a left context divisible by right + 1, got {list(context)}")
