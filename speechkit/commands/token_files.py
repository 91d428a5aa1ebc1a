"""Where tokens go and come from, and what a token file holds."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechkit.codecs.bits import frame_bits
from speechkit.codecs.container import TokenReader
from speechkit.codecs.token_header import VERSION
from speechkit.commands.sources import Recording, expand, expanded
from speechkit.errors import InputError

SUFFIX = ".skc"


def planned(files: Sequence[str], output: str) -> tuple[list[Recording], list[Path | None], list[str]]:
    """The recordings, where the tokens of each go (None: standard output), a sentence for each folder without any.

    Raises:
        InputError: the output cannot be written, is not a folder where one is needed, or would be written twice.
    """
    recordings, refused = expand(files)
    folder = expanded(output)
    if not recordings:
        return [], [], refused
    single = [recording.name for recording in recordings] == list(files)  # one in a folder has another name
    if single and len(files) == 1 and not (output.endswith(os.sep) or _is_folder(folder)):
        return recordings, [checked_target(output, SUFFIX)], refused
    if output == "-" or folder.suffix == SUFFIX or folder.is_file():
        raise InputError(f"{len(recordings)} recordings need a file each: name a folder with --output, not {output}")
    targets: dict[Path, Recording] = {}
    for recording in recordings:
        target = folder / recording.relative.with_suffix(SUFFIX)
        if target in targets:
            both = f"{targets[target].name} and {recording.name}"
            raise InputError(f"{both} would both be written to {target}: encode them into different folders")
        targets[target] = recording
    return recordings, list(targets), refused


def checked_target(output: str, suffix: str) -> Path | None:
    """The path of an output file, None for standard output.

    Raises:
        InputError: another suffix, a folder, or a standard output that is closed or a terminal.
    """
    if output != "-":
        path = expanded(output)
        if path.suffix.lower() != suffix or _is_folder(path):
            raise InputError(f"--output must be a file that ends in {suffix}, or -, got {output}")
        return path
    if sys.stdout is None or sys.stdout.isatty():
        state = "closed" if sys.stdout is None else "a terminal"
        raise InputError(f"standard output is {state}: name a file with --output, or send it through a pipe")
    return None


@contextlib.contextmanager
def opened(name: str) -> Iterator[TokenReader]:
    """A token file, or standard input.

    Raises:
        InputError: it cannot be read, or is no token file.
    """
    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            state = "closed" if sys.stdin is None else "a terminal"
            raise InputError(f"standard input is {state}: send tokens through a pipe, as in speechkit codec encode ...")
        yield TokenReader(sys.stdin.buffer, "standard input")
        return
    try:
        file = expanded(name).open("rb")
    except FileNotFoundError:
        raise InputError(f"There is no file {name}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {name}: {getattr(error, 'strerror', None) or error}.") from None
    with file:
        yield TokenReader(file, name)


def described(reader: TokenReader) -> dict[str, object]:
    """What a token file holds, which is read to its end; errors as `TokenReader.blocks`."""
    for _ in reader.blocks():
        continue
    header, samples = reader.header, reader.samples or 0
    seconds = samples / header.rate
    return {
        "file": reader.name, "version": VERSION, "model": header.model, "hash": header.weights.hex(),
        "rate_hz": header.rate, "hop": header.hop, "codebooks": list(header.sizes), "codes": reader.frames,
        "samples": samples, "seconds": round(seconds, 3), "bytes": reader.bytes,
        "bits_per_code": frame_bits(header.sizes), "bits_per_second": round(header.bits_per_second, 1),
        "bits_per_second_of_the_file": round(8 * reader.bytes / seconds, 1) if samples else None,
    }  # fmt: skip


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
