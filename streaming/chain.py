"""Streaming modules one after another, themselves a streaming module."""

from math import lcm
from typing import Any

from speechkit.streaming.state import Chunk, Streaming


class Chain:
    """Feeds each module's output chunks to the next; its state is the tuple of theirs.

    The grid is set by the module that needs the longest chunk; the modules before it adapt to multiples of their own.

    Args:
        modules: in their order.
        chunks: of the grid that one call takes; all modules must be able to.
    """

    def __init__(self, *modules: Streaming[Any], chunks: int = 1) -> None:
        self.modules = modules
        self.stride = 1
        self.chunk = 1
        for module in modules:
            self.chunk = lcm(self.chunk, self.stride * module.chunk)
            self.stride *= module.stride
        self.lookahead, self.first = self._grid()
        self.first += (chunks - 1) * self.chunk
        self.chunk *= chunks

    def _grid(self) -> tuple[int, int]:
        inputs = self.chunk
        firsts: list[int] = []
        for module in self.modules:
            firsts.append(module.first + inputs - module.chunk)
            inputs //= module.stride
        # Walk back from the module that sets the grid: what it takes first is what those before it must give first.
        lookahead, first = 0, firsts[-1]
        for i in range(len(self.modules) - 1, -1, -1):
            module = self.modules[i]
            lookahead = lookahead * module.stride + module.lookahead
            if i < len(self.modules) - 1:
                first = min(firsts[i], (first - 1) * module.stride + module.lookahead + 1)
        return lookahead, first

    def init_state(self, batch: int) -> tuple[Any, ...]:
        """State of `batch` streams that have not begun."""
        return tuple(module.init_state(batch) for module in self.modules)

    def step(self, x: Chunk, state: tuple[Any, ...]) -> tuple[Chunk, tuple[Any, ...]]:
        """One call through every module."""
        states = []
        for module, old in zip(self.modules, state, strict=True):
            x, new = module.step(x, old)
            states.append(new)
        return x, tuple(states)
