"""ONNX graphs in ONNX Runtime, behind the same streaming contract as the modules that they were exported from."""

import math
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.streaming.state import Chunk

INPUTS, OUTPUTS = ("values", "lengths", "last"), ("outputs", "output_lengths", "output_last")
DTYPES = ("float32", "float16", "float64", "int64", "int32", "bool")
LARGEST = 100_000_000  # numbers of anything that a description may ask for
NEXT = "_next"  # ends the name of the output that is the next call's input


@dataclass(frozen=True)
class Field:
    """A tensor of a stream's state, in the graph an input of this name and an output of this name and ``_next``."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int, ...]  # without the batch
    initial: Any  # of a stream that has not begun: a number everywhere, or nested lists

    def values(self, batch: int) -> Tensor:
        """The field of `batch` streams that have not begun."""
        row = np.asarray(self.initial, dtype=self.dtype)
        return torch.from_numpy(np.broadcast_to(row, (batch, *self.shape)).copy())


@dataclass(frozen=True)
class Interface:
    """What `Streaming` says of a module, and how a graph's state looks."""

    chunk: int
    first: int
    stride: int
    lookahead: int
    room: int  # inputs that one call has room for: `chunk` or a multiple of it
    dim: int  # of the inputs
    dtype: str  # of the inputs
    state: tuple[Field, ...]
    outputs: str = "float32"  # their dtype

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Interface":
        """From what `as_dict` gave.

        Raises:
            ValueError: it makes no sense.
        """
        fields = tuple(Field(**{**field, "shape": tuple(field["shape"])}) for field in found["state"])
        for field in fields:
            sizes = [whole("a state's size", size, 0) for size in field.shape]
            if not str(field.name).isidentifier() or field.dtype not in DTYPES or math.prod(sizes) > LARGEST:
                raise ValueError(f"no state is like {field.name!r:.50} of {field.dtype!r:.50}, {field.shape!r:.100}")
        made = cls(**{**found, "state": fields})
        for name, least in (("chunk", 1), ("first", 1), ("stride", 1), ("lookahead", 0), ("room", 1), ("dim", 1)):
            whole(name, getattr(made, name), least)
        for kind in (made.dtype, made.outputs):
            if kind not in DTYPES:
                raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {kind!r:.50}")
        return made


def whole(what: str, value: Any, least: int) -> int:
    """A number of a description; raises ValueError where it is no whole number, or absurd."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise ValueError(f"{what} must be a whole number from {least} to {LARGEST}, got {value!r:.50}")
    return value


class OnnxStream:
    """A graph that keeps the streaming contract (`speechkit.streaming.state.Streaming`)."""

    def __init__(self, path: str | Path, interface: Interface, threads: int = 1, providers: Sequence[str] = ()) -> None:
        self.interface = interface
        self.chunk, self.first = interface.chunk, interface.first
        self.stride, self.lookahead = interface.stride, interface.lookahead
        self._graph = OnnxGraph(path, threads, providers)
        self._state = namedtuple("OnnxState", [field.name for field in interface.state])  # type: ignore[misc]

    def init_state(self, batch: int) -> Any:
        """State of `batch` streams that have not begun: a NamedTuple of tensors."""
        return self._state(*(field.values(batch) for field in self.interface.state))

    def step(self, x: Chunk, state: Any) -> tuple[Chunk, Any]:
        """(batch, time, dim) -> (batch, time', dim'), and the state for the next call."""
        room = self.interface.room
        if x.values.shape[1] > room:
            raise ValueError(f"this graph takes {room} inputs a call, got a chunk with room for {x.values.shape[1]}")
        values = torch.nn.functional.pad(x.values, (0, 0, 0, room - x.values.shape[1]))
        dtype = getattr(torch, self.interface.dtype)
        y, lengths, last, *new = self._graph(values.to(dtype), x.lengths, x.last, *state)
        if y.is_floating_point() and x.values.is_floating_point():
            y = y.to(x.values.dtype)
        return Chunk(y, lengths, last), self._state(*new)


class OnnxGraph:
    """A graph as a function of tensors, in the order of its inputs and outputs.

    Args:
        path: the graph; weights that lie beside it are found there.
        threads: of ONNX Runtime, which do not spin while they wait.
        providers: ONNX Runtime's execution providers; the CPU's where none is named.

    Raises:
        InputError: it is no graph that this ONNX Runtime can run.
    """

    def __init__(self, path: str | Path, threads: int = 1, providers: Sequence[str] = ()) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        chosen = list(providers) or ["CPUExecutionProvider"]
        missing = [name for name in chosen if name not in onnxruntime.get_available_providers()]
        if missing:
            there = ", ".join(onnxruntime.get_available_providers())
            raise InputError(f"this ONNX Runtime has no {', '.join(missing)}, only {there}")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:  # ONNX Runtime has a class for each kind of damage, without a base of their own
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"{path} is no ONNX graph that can be run here: {reason[:200]}") from error
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.outputs = [item.name for item in self.session.get_outputs()]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Runs it."""
        feed = {name: x.detach().cpu().contiguous().numpy() for name, x in zip(self.inputs, inputs, strict=True)}
        return [torch.from_numpy(y) for y in self.session.run(None, feed)]
