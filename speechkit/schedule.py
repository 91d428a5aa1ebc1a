"""Learning-rate schedules that the recipes name."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Noam(LambdaLR):
    """``lr * dim ** -0.5 * min(step ** -0.5, step * warmup ** -1.5)`` (Vaswani et al. 2017, equation 3)."""

    def __init__(self, optimizer: Optimizer, dim: int, warmup: int = 10000, min_lr: float = 1e-6) -> None:
        base = optimizer.defaults["lr"]

        def factor(step: int) -> float:
            step = max(step, 1)
            return max(dim**-0.5 * min(step**-0.5, step * warmup**-1.5), min_lr / base if step > warmup else 0.0)

        super().__init__(optimizer, factor)


class WarmupCosine(LambdaLR):
    """Linear rise over `warmup` steps, then half a cosine down to `floor` of the peak at `steps`."""

    def __init__(self, optimizer: Optimizer, steps: int, warmup: int = 1000, floor: float = 0.01) -> None:
        self.steps, self.warmup, self.floor = steps, warmup, floor
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
