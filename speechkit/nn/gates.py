"""Gates on the connections of attention to later steps, as a bias on its scores."""

import torch
from torch import Tensor

from speechkit.nn.attention import MASKED


def as_gates(opened: Tensor) -> tuple[Tensor, Tensor]:
    """Hard gates (bool) -> their logarithms, MASKED where closed, and the gates, 0 or 1, both in single precision."""
    gates = opened.float()
    return torch.zeros_like(gates).masked_fill(~opened, MASKED), gates


def gate_bias(log: Tensor, distance: Tensor, valid: Tensor, left: int) -> Tensor:
    """What attention adds to its scores so that each weight is multiplied by the gate of its connection.

    Args:
        log: (batch, queries, right) logarithms of the gates on the next 1 ... `right` keys.
        distance: (batch, queries, keys) int64 steps from query to key.
        valid: (batch, 1 or queries, keys) bool.
        left: steps before it that a query sees, all of them.

    Returns:
        (batch, 1, queries, keys); MASKED, which excludes exactly, for keys that are invalid or out of reach.
    """
    right = log.shape[2]
    table = torch.cat([log.new_zeros(*log.shape[:2], 1), log], dim=2)
    bias = table.gather(2, distance.clamp(0, right))
    seen = (distance >= -left) & (distance <= right) & valid
    return bias.masked_fill(~seen, MASKED)[:, None]
