"""What adaptive look-ahead costs: arrival times over the dependency paths, and losses and figures made of them.

ANCAT (Strimel et al. 2023, arXiv 2305.04159) is regularised by an algorithmic and a compute-induced latency; the
paper's equations were not at hand, so that everything here is a reconstruction. Times are in steps of the encoder.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask


def inside(gates: Tensor, lengths: Tensor) -> Tensor:
    """(..., batch, steps, right) gates, zero where a connection leads beyond its row's end."""
    steps, right = gates.shape[-2:]
    position = torch.arange(steps, device=gates.device)[:, None] + torch.arange(1, right + 1, device=gates.device)
    return gates * (position < lengths[:, None, None])


def arrivals(gates: Tensor, lengths: Tensor) -> Tensor:
    """When every step of every layer can run, if step i of the first layer's input comes at time i.

    ``b = a[i]``, then ``b = g * max(b, a[i + r]) + (1 - g) * b`` for r = 1 ... right, over the arrivals a of the layer
    before; a step also waits for those before it, which left context and convolution need. Exact for hard gates,
    differentiable for soft ones. Only what lengthens a step's longest path to the input counts, not every connection.

    Args:
        gates: (layers, batch, steps, right) from 0 to 1.
        lengths: (batch,) valid steps; at a row's end nothing is waited for.

    Returns:
        (layers, batch, steps); the last layer's are those of the outputs.
    """
    _, batch, steps, right = gates.shape
    arrival = torch.arange(steps, device=gates.device, dtype=gates.dtype).expand(batch, steps)
    found = []
    for layer in inside(gates, lengths):
        waited = arrival
        for r in range(1, min(right, steps - 1) + 1):
            longer = F.relu(arrival[:, r:] - waited[:, : steps - r])
            waited = waited + F.pad(layer[:, : steps - r, r - 1] * longer, (0, r))
        arrival = _running_max(waited)
        found.append(arrival)
    return torch.stack(found)


def _running_max(x: Tensor) -> Tensor:
    """As `cummax` over (batch, steps); of equal values the first, which holds up the others, has the gradient."""
    index = torch.arange(x.shape[1], device=x.device)
    before = F.pad(x.detach().cummax(1).values[:, :-1], (1, 0), value=-1.0)
    return x.gather(1, torch.where(x > before, index, 0).cummax(1).values)


def algorithmic_loss(arrival: Tensor, lengths: Tensor, longest: float, free: float = 0.0) -> Tensor:
    """Mean wait of the outputs, without the first `free` steps of each, in units of the `longest` possible wait.

    Args:
        arrival: (batch, steps) of the last layer.
        lengths: (batch,).
        longest: layers times right.
    """
    position = torch.arange(arrival.shape[1], device=arrival.device)
    waits = F.relu(arrival - position - free) * valid_mask(lengths, arrival.shape[1])
    return waits.sum() / (lengths.sum().clamp(min=1) * longest)


def connection_penalty(gates: Tensor, lengths: Tensor) -> Tensor:
    """The naive penalty, for comparison: mean of r times the gate over all connections, from 0 to 1, paths ignored."""
    layers, _, _, right = gates.shape
    distance = torch.arange(1, right + 1, device=gates.device, dtype=gates.dtype)
    total = (inside(gates, lengths) * valid_mask(lengths, gates.shape[2])[..., None] * distance).sum()
    return total / (lengths.sum().clamp(min=1) * layers * distance.sum())


def backlog(arrival: Tensor, lengths: Tensor, capacity: float) -> Tensor:
    """Work that waits at the end of every step's time, on a device that does `capacity` layer steps in that time.

    Step i of layer l is work for one at its arrival a; the triangular kernel ``max(0, 1 - |t - a|)`` spreads it over
    the two whole times around a. At a whole time, where hard gates have all of them, the gradient is that of a shorter
    wait: the other one would reward a wait that moves work out of sight. ``B[t] = max(0, B[t - 1] + n[t] - c)``, by its
    closed form: the running sum of n - c above its lowest value so far.

    Args:
        arrival: (layers, batch, steps) within each row's length.
        lengths: (batch,).
        capacity: c, over 0. A device with the real-time factor f on the causal encoder does layers / f.

    Returns:
        (batch, steps) in layer steps.
    """
    if not capacity > 0:
        raise ValueError(f"a device's capacity must be over 0 layer steps a step, got {capacity}")
    _, batch, steps = arrival.shape
    valid = valid_mask(lengths, steps)
    before = arrival.detach().ceil() - 1  # -1 of what is there at once: the first slot, which is dropped
    later = arrival - before
    index = (before.long() + 1).clamp(max=steps).transpose(0, 1).flatten(1)
    work = arrival.new_zeros(batch, steps + 2)
    for share, offset in ((1 - later, 0), (later, 1)):
        work = work.scatter_add(1, index + offset, (share * valid).transpose(0, 1).flatten(1))
    total = (work[:, 1 : steps + 1] - capacity).cumsum(1)
    return total - total.cummin(1).values.clamp(max=0)


def compute_loss(arrival: Tensor, lengths: Tensor, capacity: float) -> Tensor:
    """Mean time, in steps, that a device needs for what `backlog` has waiting."""
    waiting = backlog(arrival, lengths, capacity) * valid_mask(lengths, arrival.shape[2])
    return waiting.sum() / (lengths.sum().clamp(min=1) * capacity)


class Latency(NamedTuple):
    """Figures of hard gates over all steps and utterances, in steps."""

    mean: float  # algorithmic: from an output's own input to its arrival
    p50: float
    p90: float
    end: float  # mean over utterances of how long after the last input the last output is computed


def measure(gates: Tensor, lengths: Tensor, capacity: float) -> Latency:
    """Algorithmic latency of (layers, batch, steps, right) gates, and the end's on a device of `capacity`.

    At the end of an utterance nothing is waited for: what remains is ``arrival - last step + backlog / capacity``.
    """
    arrival, rows = arrivals(gates, lengths), lengths > 0
    steps = arrival.shape[2]
    waits = (arrival[-1] - torch.arange(steps, device=arrival.device))[valid_mask(lengths, steps)].double()
    if not len(waits):
        return Latency(0.0, 0.0, 0.0, 0.0)
    last = (lengths - 1).clamp(min=0)[:, None]
    late = (arrival[-1] + backlog(arrival, lengths, capacity) / capacity).gather(1, last) - last
    p50, p90 = waits.quantile(waits.new_tensor([0.5, 0.9])).tolist()
    return Latency(float(waits.mean()), p50, p90, float(late[rows].double().mean()))
