"""Export folders read again, whatever kind of model they hold."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechkit.errors import InputError
from speechkit.onnx import FORMAT, META
from speechkit.onnx.kind import FORMER, KINDS, named

HASH_BYTES = 16


def read(folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> Any:
    """The model of an export folder, as `speechkit.load` gives it: a recogniser's `Transcriber`, a codec's `Codec`.

    Raises:
        InputError: the folder is not whole, of another version, or of a kind that is not known.
    """
    meta = read_meta(folder)
    kind = KINDS.get(str(meta.get("kind", FORMER)))
    if kind is None:
        there = ", ".join(KINDS)
        raise InputError(f"{folder / META} is of kind {meta['kind']!r:.50}, this version of speechkit reads {there}")
    reader = named(kind.reader)
    try:
        return reader(meta, folder, threads, providers)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / META} describes no {kind.noun}: {error!r:.200}") from error


def read_meta(folder: Path) -> dict[str, Any]:
    """What `meta.json` says; errors as `read`."""
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT:
        raise InputError(f"{path} has format {version!r:.50}, this version of speechkit reads {FORMAT}")
    return dict(meta)


def weights_hash(meta: Mapping[str, Any]) -> bytes:
    """The hash of the weights that an export was made of; raises ValueError where it is none."""
    found = bytes.fromhex(meta["weights"])
    if len(found) != HASH_BYTES:
        raise ValueError(f"the weights' hash must be {HASH_BYTES} bytes, got {meta['weights']!r:.50}")
    return found


def plain(folder: Path, name: str) -> Path:
    """A file of the folder; a description from elsewhere may name no other."""
    if name != Path(name).name:
        raise ValueError(f"a graph must lie in its export's folder, got {name!r:.100}")
    return folder / name


def there(folder: Path, name: str) -> Path:
    """As `plain`; raises InputError where there is no such file."""
    path = plain(folder, name)
    if not path.is_file():
        raise InputError(f"{folder} is no whole export: it lacks {name}")
    return path
