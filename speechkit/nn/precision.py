"""What autocast is kept away from."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def unreduced(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast changes nothing on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
