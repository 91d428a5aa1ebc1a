"""What flows between streaming modules, and how their state is stacked, split, selected and reset.

A state is a pytree: nested NamedTuples, tuples and lists of tensors, every tensor batch first and of fixed shape.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

StateT = TypeVar("StateT")


class Chunk(NamedTuple):
    """A piece of many streams: valid entries come first in each row, what follows them is zero."""

    values: Tensor  # (batch, time, dim), fixed room
    lengths: Tensor  # (batch,) int64, valid entries; 0 where a row is idle in this call
    last: Tensor  # (batch,) bool: this row's stream ends with this chunk


class Streaming(Protocol[StateT]):
    """A module that runs chunk by chunk.

    A row brings any number of inputs up to the room of the call, 0 where it is idle; what does not fill the module's
    grid waits in its state. No wait is longest, and no call in vain, where a row's first call brings `first` inputs and
    every later one `chunk`. Output ``m``, if it is the last of its call, needs no input after ``m * stride +
    lookahead``. The output's room is the same in every call: a `last` row that has more to give answers ``last=False``
    and is called again with no input and ``last=True`` until it answers ``last=True``. The state of an idle row comes
    back unchanged.

    Only some modules take calls with room for several times `chunk`; the others refuse them with a ValueError.
    """

    chunk: int  # inputs that one call takes
    first: int  # inputs that the first call of a stream takes, at most `chunk`
    stride: int  # inputs per output
    lookahead: int  # inputs after a call's last output's own that it waits for

    def init_state(self, batch: int) -> StateT:
        """State of `batch` streams that have not begun."""
        ...

    def step(self, x: Chunk, state: StateT) -> tuple[Chunk, StateT]:
        """One call: (batch, time, dim) in, (batch, time', dim') out, and the state for the next call."""
        ...


def tree_map(fn: Callable[..., Tensor], *trees: Any) -> Any:
    """Applies `fn` to the corresponding tensors of states of one structure."""
    head = trees[0]
    if isinstance(head, Tensor):
        return fn(*trees)
    parts = [tree_map(fn, *branch) for branch in zip(*trees, strict=True)]
    if hasattr(head, "_fields"):
        return type(head)(*parts)
    return type(head)(parts)


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a state, in field order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for branch in tree for leaf in leaves(branch)]


def names(tree: Any, prefix: str = "") -> list[str]:
    """A name for every tensor of `leaves(tree)`, from field names and positions (``layers_0_conv_left``)."""
    if isinstance(tree, Tensor):
        return [prefix or "state"]
    keys = getattr(tree, "_fields", range(len(tree)))
    return [
        name
        for key, branch in zip(keys, tree, strict=True)
        for name in names(branch, f"{prefix}_{key}" if prefix else str(key))
    ]


def stack(states: Sequence[StateT]) -> StateT:
    """Joins the states of several streams into one batch."""
    return tree_map(lambda *rows: torch.cat(rows), *states)


def select(state: StateT, rows: Tensor | Sequence[int]) -> StateT:
    """The given rows of a batch of states; (rows,) int64."""
    return tree_map(lambda t: t[torch.as_tensor(rows, dtype=torch.int64, device=t.device)], state)


def split(state: StateT) -> list[StateT]:
    """The states of a batch, one stream each."""
    return [tree_map(lambda t, i=i: t[i : i + 1], state) for i in range(len(leaves(state)[0]))]


def where(rows: Tensor, new: StateT, old: StateT) -> StateT:
    """`new` where `rows` (batch,) bool is true, `old` elsewhere."""

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        mine = rows.view(-1, *[1] * (a.dim() - 1))
        return (
            (mine & a) | (~mine & b) if a.dtype == torch.bool else torch.where(mine, a, b)
        )  # ONNX Runtime has no other

    return tree_map(chosen, new, old)


def put(state: StateT, rows: Sequence[int], values: StateT) -> StateT:
    """A copy of `state` in which `rows` are replaced by the rows of `values`: reset, restore or move a stream."""

    def replaced(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, torch.as_tensor(rows, dtype=torch.int64, device=old.device), new.to(old))

    return tree_map(replaced, state, values)


def queue_push(pending: Tensor, waiting: Tensor, x: Chunk) -> Tensor:
    """Appends a chunk to each row's queue: (batch, size, dim), (batch,) and a chunk -> (batch, size + time, dim)."""
    size, room = pending.shape[1], x.values.shape[1]
    index = torch.arange(size + room, device=waiting.device) - waiting[:, None]
    new = x.values.gather(1, index.clamp(0, room - 1)[..., None].expand(-1, -1, x.values.shape[2]))
    old = torch.nn.functional.pad(pending, (0, 0, 0, room))
    return torch.where((index < 0)[..., None], old, new * (index < x.lengths[:, None])[..., None])


def queue_pop(queue: Tensor, start: Tensor, count: int) -> Tensor:
    """`count` entries of each row's queue from `start` (batch,) on: (batch, count, dim)."""
    index = (start[:, None] + torch.arange(count, device=start.device)).clamp(0, queue.shape[1] - 1)
    return queue.gather(1, index[..., None].expand(-1, -1, queue.shape[2]))


def check_room(x: Chunk, chunk: int) -> None:
    """Refuses a call with room for more than a module takes, which would be lost."""
    room = x.values.shape[1]
    if room > chunk:
        raise ValueError(f"this stream takes at most {chunk} inputs a call, got a chunk with room for {room}")


def size_bytes(state: Any) -> int:
    """Bytes that one stream's state holds."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state)) // len(leaves(state)[0])
