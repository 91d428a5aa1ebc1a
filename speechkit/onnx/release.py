"""Export folders made whole: written beside their place, checked, and only then put there."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx
from torch import Tensor

from speechkit.asr.conformer import Context
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.files import beside, take_place
from speechkit.onnx import META, WEIGHTS
from speechkit.onnx.check import TOLERANCE, WORSE, Parity, parity, word_errors
from speechkit.onnx.nemo import AUTHOR, TOKENS, nemo_heads_parity, nemo_parity, write_nemo
from speechkit.onnx.nemo import ENCODERS as NEMO_ENCODERS
from speechkit.onnx.read import read
from speechkit.onnx.write import reduced, write
from speechkit.streaming.quantize import REDUCE
from speechkit.text import CHARACTERS_FILE, PIECES_FILE

PRECISIONS = ("fp32", "int8", "fp16")
PARTS = (META, WEIGHTS, PIECES_FILE, CHARACTERS_FILE, TOKENS)
LARGEST = sys.float_info.max
HALF = 0.02  # of the largest number, in half precision
Words = dict[tuple[str, float | None], float]  # percent of each decoder and look-ahead
Recordings = Sequence[tuple[str, Sequence[Tensor], Sequence[str]]]  # splits: name, waves, texts


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place, if nothing fails.

    Raises:
        InputError: the place cannot be written, or holds something that is no export.
    """
    folder = _free(folder)
    with beside(folder) as place:
        try:
            yield place
            old = take_place(folder, place)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _free(folder: Path) -> Path:
    """The absolute path of a folder that an export may take the place of."""
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and _is_ours(sorted(folder.iterdir()))):
        raise InputError(f"{folder} holds something else: name a new folder, an empty one or that of an older export")
    return folder


def _is_ours(files: Sequence[Path]) -> bool:
    """Whether what is in a folder is an older export, or nothing."""
    if not all(path.is_file() and (path.suffix == ".onnx" or path.name in PARTS) for path in files):
        return False
    return not files or any(map(_says_so, files))


def _says_so(path: Path) -> bool:
    """Whether a file says that speechkit made it."""
    try:
        if path.name == META:
            meta = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(meta, dict) and "speechkit" in meta
        if path.name in NEMO_ENCODERS:
            return any(item.value == AUTHOR for item in onnx.load(path, load_external_data=False).metadata_props)
    except Exception:  # whatever it is, it is not ours
        return False
    return False


def export(
    transcriber: Transcriber,
    folder: Path,
    precisions: Sequence[str] = ("fp32",),
    contexts: Sequence[Context] | None = None,
    front: bool = True,
    recordings: Recordings = (),
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Exports a recogniser, checks the graphs against it, and puts them into place.

    Args:
        transcriber: the recogniser.
        folder: for one precision the export itself, for several the folder of their folders.
        precisions: of ``fp32``, ``int8``, ``fp16`` (for GPUs).
        contexts: look-aheads; all that the model streams with where none are given.
        front: the graphs take samples; without it log-mel features.
        recordings: on which word errors are compared.
        say: what takes the report, line by line.

    Returns:
        The folder of each precision.

    Raises:
        InputError: the model cannot be exported, the folder cannot be written, or a check failed.
    """
    places = {name: _free(folder / name if len(precisions) > 1 else folder) for name in _known(precisions)}
    with ExitStack() as stack:  # all of them come into place, or none does
        inner = {name: stack.enter_context(fresh(place)) for name, place in places.items()}
        whole = inner[precisions[0]]
        write(transcriber, whole, None if contexts is None else list(dict.fromkeys(contexts)), front)
        exported = read(whole)
        _check_parity("fp32", parity(transcriber, exported), say)
        known = [_check_words(transcriber, exported, "fp32", split, None, say) for split in recordings]
        for name in sorted(precisions, key=lambda name: inner[name] == whole):  # the copies before the original
            if inner[name] != whole:
                shutil.copytree(whole, inner[name], dirs_exist_ok=True)
            if name != "fp32":
                reduced(inner[name], name)
                exported = read(inner[name])
                _check_parity(name, parity(transcriber, exported), say)
                for split, expected in zip(recordings, known, strict=True):
                    _check_words(transcriber, exported, name, split, expected, say)
    for name, place in places.items():
        size = sum(file.stat().st_size for file in place.iterdir())
        say(f"{name}: {size / 1e6:.1f} MB in {place}")
    return places


def export_nemo(
    transcriber: Transcriber,
    folder: Path,
    precisions: Sequence[str] = ("fp32",),
    contexts: Sequence[Context] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Exports in NeMo's layout, a folder for each context and, where there are several, each precision.

    Arguments, result and errors as those of `export`.
    """
    model = transcriber.network
    chosen = [context for context in model.contexts if model.streams(context)] if contexts is None else contexts
    chosen = list(dict.fromkeys(chosen))
    several = len(precisions) * len(chosen) > 1
    names = {(kind, at): f"{kind}_{at[0]}_{at[1]}" if several else "" for kind in _known(precisions) for at in chosen}
    places = {key: _free(folder / name) for key, name in names.items()}
    with ExitStack() as stack:
        inner = {key: stack.enter_context(fresh(place)) for key, place in places.items()}
        for context in chosen:
            whole = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_nemo(transcriber, whole, context)
            for precision in dict.fromkeys(precisions):
                place = inner[precision, context]
                shutil.copytree(whole, place, dirs_exist_ok=True)
                for path in sorted(place.glob("*.onnx")):
                    if path.name not in NEMO_ENCODERS:
                        continue
                    if precision != "fp32":
                        REDUCE[precision](path)
                    _check_parity(precision, [nemo_parity(transcriber, path, context)], say)
                _check_parity("fp32", nemo_heads_parity(transcriber, place), say)
    return {name or precisions[0]: places[key] for key, name in names.items()}


def _known(precisions: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown or not precisions:
        raise InputError(f"precisions are of {', '.join(PRECISIONS)}, got {', '.join(unknown) or 'none'}")
    return precisions


def _check_parity(precision: str, found: Sequence[Parity], say: Callable[[str], None]) -> None:
    for item in found:
        at = f" {item.context[0]},{item.context[1]}" if item.context else ""
        say(f"{precision} {item.what}{at}: largest difference {item.difference:.1e} of {item.size:.1f}")
    for item in found:
        # what eight bits cost only recordings can tell; half precision has three digits
        allowed = {"fp32": TOLERANCE, "fp16": max(TOLERANCE, HALF * item.size)}.get(precision, LARGEST)
        if not item.difference <= allowed:  # nor where it is NaN
            raise InputError(f"the graphs do not compute what the model does: they differ by {item.difference:.1e}")


def _check_words(
    transcriber: Transcriber,
    exported: Transcriber,
    precision: str,
    recordings: tuple[str, Sequence[Tensor], Sequence[str]],
    expected: Words | None,
    say: Callable[[str], None],
) -> Words:
    """Compares word errors of an export with those `expected` of the model, which are counted where not yet known."""
    split, waves, texts = recordings
    if expected is None:
        expected, found = word_errors([transcriber, exported], split, waves, texts)
    else:
        (found,) = word_errors([exported], split, waves, texts)
    count = sum(len(text.split()) for text in texts)
    for (decoder, latency), rate in found.items():
        beside = f"the model's {expected[decoder, latency]:.2f} %"
        say(f"{precision} {split} ({count} words) {decoder} {latency:g} ms: WER {rate:.2f} %, {beside}")
    worst = max(rate - expected[key] for key, rate in found.items())
    allowed = 0.0 if precision == "fp32" else WORSE
    if worst > allowed + 1e-9:
        raise InputError(f"the {precision} graphs make {worst:.2f} % more word errors, where {allowed:g} is allowed")
    return expected
