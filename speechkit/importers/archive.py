"""Reading archives and pickles that anybody may have made: by allow-list, in memory, within limits, running no code."""

import io
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.release import check_plain

MAX_BYTES = 16 << 30  # all that is read of one archive
SMALL_BYTES = 64 << 20  # below this any compression is believed
MAX_RATIO = 50  # above it, an archive that unpacks to more than this many times its size is a bomb
MAX_MEMBERS = 10_000
WRAPPINGS = ("state_dict", "model_state_dict", "model")  # what training programs call the weights
PARALLEL = "module."
MAX_STRANGERS = 100  # classes that a checkpoint may name besides tensors


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The members of a tar file (plain or gzip) that `wanted` accepts, by name without a leading ``./``.

    Nothing is extracted. Links, devices, sparse members, absolute names and names with ``..`` are refused wherever they
    are in the archive, as are archives that unpack to absurd sizes.
    """
    found: dict[str, bytes] = {}
    budget = min(MAX_BYTES, max(SMALL_BYTES, MAX_RATIO * path.stat().st_size))
    try:
        with tarfile.open(path, mode="r:*") as archive:
            for count, member in enumerate(archive):
                name = member.name.removeprefix("./")
                _check_member(path, member)
                budget -= max(member.size, 0)
                if count >= MAX_MEMBERS or budget < 0:
                    raise InputError(f"{path.name} is refused: it would unpack to far more than its own size")
                if not member.isfile() or not wanted(name):
                    continue
                if name in found:
                    raise InputError(f"{path.name} is refused: it holds {name} twice")
                stream = archive.extractfile(member)
                if stream is None:
                    raise InputError(f"{path.name} is refused: its member {name} has no content")
                found[name] = stream.read()
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{path.name} is not a complete archive: {_first_line(error)}") from error
    return found


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    """Refuses what no published archive holds."""
    parts = member.name.replace("\\", "/").split("/")
    kind = None
    if member.name.startswith(("/", "\\")) or ".." in parts:
        kind = "a name outside the archive"
    elif member.issym() or member.islnk():
        kind = "a link"
    elif member.issparse():
        kind = "a sparse file"
    elif not (member.isfile() or member.isdir()):
        kind = "a device or another special file"
    if kind:
        raise InputError(f"{path.name} is refused: its member {member.name!r} is {kind}")


def read_pickle(data: bytes, source: str, strangers: bool = False) -> object:
    """What `torch.save` wrote, tensors and plain values only: a pickle that would run code is refused.

    Args:
        data: the file.
        source: of messages.
        strangers: objects of other classes, such as a training's settings, become empty ones that do nothing; their
            classes are not imported.
    """
    _check_zip(data, source)
    stand_ins: dict[str, Any] = {}
    for _ in range(2 * MAX_STRANGERS):
        try:
            with torch.serialization.safe_globals(list(stand_ins.values())):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            _stand_in(str(error), stand_ins, strangers, source, error)
        except Exception as error:  # whatever a damaged pickle makes of torch's reader
            raise InputError(f"{source} is no complete PyTorch file: {_first_line(error)}") from error
    raise InputError(f"{source} is refused: it names more than {MAX_STRANGERS} classes besides tensors")


def _stand_in(said: str, stand_ins: dict[str, Any], allowed: bool, source: str, error: Exception) -> None:
    """Adds what torch's reader missed: something of that name that takes everything and does nothing."""
    filled = re.search(r"Can only (SETITEM|append|extend).* got <class '([\w.]+)'>", said)
    if filled and filled[2] in stand_ins:
        stand_ins[filled[2]] = _nothing(filled[2], dict if filled[1] == "SETITEM" else list)
        return
    named = re.search(r"GLOBAL ([\w.]+)", said)
    if named is None:
        raise InputError(f"{source} is no complete PyTorch file") from error
    if not allowed or "is blocked" in said:
        raise InputError(
            f"{source} is refused: besides tensors it names {named[1]}, which loading would run"
        ) from error
    stand_ins[named[1]] = _nothing(named[1], None)


def _nothing(name: str, container: type | None) -> type:
    """A class of a name whose objects are empty: its own, or plain containers that are then filled."""

    class Nothing:
        def __new__(cls, *_: object) -> Any:
            return super().__new__(cls) if container is None else container()

        def __init__(self, *_: object) -> None:
            pass

        def __setstate__(self, _: object) -> None:
            pass

    Nothing.__module__, _, own = name.rpartition(".")
    Nothing.__name__ = Nothing.__qualname__ = own
    return Nothing


def _first_line(error: Exception) -> str:
    """What tarfile's and torch's messages begin with; what follows is for their developers."""
    return str(error).strip().partition("\n")[0].rstrip(":") or type(error).__name__


def _check_zip(data: bytes, source: str) -> None:
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return
        size = sum(entry.file_size for entry in zipfile.ZipFile(io.BytesIO(data)).infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(f"{source} is no complete PyTorch file: {error}") from error
    if size > max(SMALL_BYTES, 2 * len(data)):
        raise InputError(f"{source} is refused: it would unpack to far more than its own size")


def read_state_dict(data: bytes, source: str, strangers: bool = False) -> dict[str, Tensor]:
    """A plain dictionary of tensors that `torch.save` wrote; arguments as of `read_pickle`."""
    state = read_pickle(data, source, strangers)
    for wrapping in WRAPPINGS:
        if isinstance(state, dict) and isinstance(state.get(wrapping), dict):
            state = state[wrapping]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{source} holds no dictionary of tensors")
    check_plain(state, source)
    wrapped = all(str(name).startswith(PARALLEL) for name in state)  # by DistributedDataParallel
    return {str(name).removeprefix(PARALLEL if wrapped else ""): tensor for name, tensor in state.items()}
