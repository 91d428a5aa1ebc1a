"""Exports of recognisers: one graph a look-ahead, the heads' graphs, the tokenizer; or folders in NeMo's layout."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from speechkit.asr.conformer import Context
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.onnx.check import TOLERANCE, WORSE, Parity, parity, word_errors
from speechkit.onnx.folder import MARKED, free, fresh
from speechkit.onnx.nemo import nemo_heads_parity, nemo_parity, write_nemo
from speechkit.onnx.parity import check_parity
from speechkit.onnx.publish import Export, Recordings, Say, check_precisions, publish
from speechkit.onnx.write import write
from speechkit.streaming.quantize import reduce

PRECISIONS = ("fp32", "int8", "fp16")
LARGEST = sys.float_info.max
HALF = 0.02  # of the largest number, in half precision
Words = dict[tuple[str, float | None], float]  # percent of each decoder and look-ahead


class RecognizerExport(Export):
    """A recogniser.

    Args:
        transcriber: the recogniser.
        recordings: on which word errors are compared.
        contexts: look-aheads; all that the model streams with where none are given.
        front: the graphs take samples; without it log-mel features.

    Raises:
        InputError: the model was loaded with ``compat="reference"``.
    """

    precisions = PRECISIONS
    keep: ClassVar[Sequence[str]] = (".mel",)  # the log-mel filters: powers of many sizes
    relative: ClassVar[float] = 0.0  # part of the largest number that single precision may be off, if more than 1e-4
    use = "speechkit transcribe --stream --model {} FILE.wav"

    def __init__(
        self,
        transcriber: Transcriber,
        recordings: Recordings = (),
        contexts: Sequence[Context] | None = None,
        front: bool = True,
    ) -> None:
        _check_exact(transcriber)
        self.transcriber, self.recordings, self.front = transcriber, recordings, front
        self.contexts = None if contexts is None else list(dict.fromkeys(contexts))
        self._known: dict[int, Words] = {}  # the model's own word errors on the recordings

    def write(self, folder: Path) -> None:
        """As `Export.write`."""
        write(self.transcriber, folder, self.contexts, self.front)

    def reduced(self, meta: Mapping[str, Any]) -> Sequence[str]:
        """The encoders: the heads are small and their errors last."""
        return [entry["file"] for entry in meta["contexts"]]

    def parity(self, exported: Transcriber) -> list[Parity]:
        """How far a folder, read again, is from the model."""
        return parity(self.transcriber, exported)

    def check(self, exported: Any, precision: str, say: Say) -> None:
        """As `Export.check`."""
        _check_parity(precision, self.parity(exported), say, self.relative)
        for i, split in enumerate(self.recordings):
            known = self._known.get(i)
            self._known[i] = _check_words(self.transcriber, exported, precision, split, known, say)


def export(
    transcriber: Transcriber,
    folder: Path,
    precisions: Sequence[str] = ("fp32",),
    contexts: Sequence[Context] | None = None,
    front: bool = True,
    recordings: Recordings = (),
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Exports a recogniser; arguments as of `RecognizerExport` and, with result and errors, of `publish`."""
    return publish(RecognizerExport(transcriber, recordings, contexts, front), folder, precisions, say)


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
    check_precisions(precisions, PRECISIONS)
    _check_exact(transcriber)
    model = transcriber.network
    chosen = [context for context in model.contexts if model.streams(context)] if contexts is None else contexts
    chosen = list(dict.fromkeys(chosen))
    several = len(precisions) * len(chosen) > 1
    names = {(kind, at): f"{kind}_{at[0]}_{at[1]}" if several else "" for kind in precisions for at in chosen}
    places = {key: free(folder / name) for key, name in names.items()}
    with ExitStack() as stack:
        inner = {key: stack.enter_context(fresh(place)) for key, place in places.items()}
        for context in chosen:
            whole = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_nemo(transcriber, whole, context)
            for precision in dict.fromkeys(precisions):
                place = inner[precision, context]
                shutil.copytree(whole, place, dirs_exist_ok=True)
                for path in sorted(place.glob("*.onnx")):
                    if path.name not in MARKED:
                        continue
                    if precision != "fp32":
                        reduce(path, precision)
                    _check_parity(precision, [nemo_parity(transcriber, path, context)], say)
                _check_parity("fp32", nemo_heads_parity(transcriber, place), say)
    return {name or precisions[0]: places[key] for key, name in names.items()}


def _check_exact(transcriber: Transcriber) -> None:
    """Refuses the arithmetic of a reference, which no graph has as a whole."""
    if getattr(transcriber.model, "compat", None) is not None:
        raise InputError("a recogniser loaded with compat='reference' cannot be exported: load it without")


def _check_parity(precision: str, found: Sequence[Parity], say: Say, relative: float = 0.0) -> None:
    def allowed(item: Parity) -> float:
        """What eight bits cost only recordings can tell; half precision has three digits."""
        parts = {"fp32": relative, "fp16": HALF}
        return max(TOLERANCE, parts[precision] * item.size) if precision in parts else LARGEST

    check_parity(precision, found, say, allowed)


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
