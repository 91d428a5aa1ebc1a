"""Reading archives and pickles that anybody may have made: by allow-list, in memory, within limits, running no code."""

import io
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.release import check_plain

MAX_BYTES = 16 << 30  # all that is read of one archive
SMALL_BYTES = 64 << 20  # below this any compression is believed
MAX_RATIO = 50  # above it, an archive that unpacks to more than this many times its size is a bomb
MAX_MEMBERS = 10_000


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


def read_pickle(data: bytes, source: str) -> object:
    """What `torch.save` wrote, tensors and plain values only: a pickle that would run code is refused."""
    _check_zip(data, source)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise InputError(f"{source} is no complete PyTorch file") from error
        raise InputError(
            f"{source} is refused: besides tensors it names {named[1]}, which loading would run"
        ) from error
    except Exception as error:  # whatever a damaged pickle makes of torch's reader
        raise InputError(f"{source} is no complete PyTorch file: {_first_line(error)}") from error


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


def read_state_dict(data: bytes, source: str) -> dict[str, Tensor]:
    """A plain dictionary of tensors that `torch.save` wrote."""
    state = read_pickle(data, source)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{source} holds no dictionary of tensors")
    check_plain(state, source)
    return {str(name): tensor for name, tensor in state.items()}
