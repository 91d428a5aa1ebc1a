"""N-gram language models (KenLM, through flashlight-text) as scorers of a beam search."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain
from math import log
from pathlib import Path
from typing import Any, NamedTuple

from speechkit.errors import InputError
from speechkit.text import WORD_START, Tokenizer

UNKNOWN = "<unk>"
LARGEST = 1000.0  # weight and bonus: what a search sums up stays exact
NATS = log(10.0)  # KenLM gives logarithms to base 10


class NgramState(NamedTuple):
    """KenLM's state after the finished words, and the word that is being spelled."""

    context: Any
    word: str


class NgramScorer:
    """Adds ``weight * log P(word | words before)`` and a bonus for each word, or token, of a sequence.

    Args:
        path: n-gram model, ARPA text or KenLM's binary format.
        tokenizer: of the recogniser.
        weight: of the language model against the recogniser, from -1000 to 1000 as the bonus.
        bonus: nats added for each word (token), against the language model's liking of few of them.
        unit: what the model's entries are: ``word``, counted when it is complete, or ``piece`` of the tokenizer.
        words: the model's vocabulary; needed for the binary format, which cannot be asked for it.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: Tokenizer,
        weight: float = 0.5,
        bonus: float = 0.5,
        unit: str = "word",
        words: Sequence[str] | None = None,
    ) -> None:
        if unit not in ("word", "piece"):
            raise InputError(f"an n-gram model scores 'word' or 'piece' units, got {unit!r}")
        if not all(abs(value) <= LARGEST for value in (weight, bonus)):
            raise InputError(
                f"the weight and the bonus of a language model should be from {-LARGEST:g} to {LARGEST:g}, "
                f"got {weight:g} and {bonus:g}"
            )
        self.tokenizer, self.weight, self.bonus, self.unit = tokenizer, weight, bonus, unit
        if unit == "piece":
            entries: Sequence[str] = tokenizer.pieces
        else:
            entries = list(_arpa_words(_file(path))) if words is None else words
        self._lm, self._index = load_kenlm(path, entries)
        self._unknown = self._index[UNKNOWN]
        self._starts = [piece == " " or piece.startswith(WORD_START) for piece in tokenizer.pieces]

    def start(self) -> NgramState:
        """State at the start of a sentence."""
        return NgramState(self._lm.start(False), "")

    def score(self, state: NgramState, token: int) -> tuple[float, NgramState]:
        """What the next token adds, in nats: for words, the word that it ends."""
        piece = self.tokenizer.pieces[token]
        if self.unit == "piece":
            gain, context = self._score(state.context, piece)
            return gain, NgramState(context, "")
        letters = piece.replace(WORD_START, "").strip()
        if not self._starts[token]:
            return 0.0, NgramState(state.context, state.word + letters)
        if not state.word:
            return 0.0, NgramState(state.context, letters)
        gain, context = self._score(state.context, state.word)
        return gain, NgramState(context, letters)

    def finish(self, state: NgramState) -> float:
        """What the last word and the end of the sentence add."""
        gain, context = self._score(state.context, state.word) if state.word else (0.0, state.context)
        return gain + self.weight * NATS * float(self._lm.finish(context)[1])

    def _score(self, context: Any, entry: str) -> tuple[float, Any]:
        context, log10 = self._lm.score(context, self._index.get(entry, self._unknown))
        return self.weight * NATS * float(log10) + self.bonus, context


def _file(path: str | Path) -> Path:
    path = Path(path)
    with contextlib.suppress(OSError):  # of a name that is too long
        if path.is_file():
            return path
    raise InputError(f"an n-gram language model was expected at {path}, but there is no such file")


def load_kenlm(path: str | Path, entries: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """flashlight's KenLM and the index of each entry, ``<unk>`` among them."""
    path = _file(path)
    try:
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise InputError(
            f"n-gram language models need flashlight-text with KenLM: pip install 'speechkit[decode]' ({error})"
        ) from error
    names = list(dict.fromkeys(chain(entries, [UNKNOWN])))
    try:
        return KenLM(str(path), Dictionary(names)), {name: i for i, name in enumerate(names)}
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path} is not an n-gram model in ARPA or KenLM format: {reason}") from error


def _arpa_words(path: Path) -> Iterator[str]:
    """The unigrams of an ARPA file."""
    inside = False
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            fields = line.split()
            if (number == 0 and "\0" in line) or line.startswith("mmap lm"):
                raise InputError(f"{path} is in KenLM's binary format: give its vocabulary as `words` too")
            if fields and fields[0].startswith("\\"):
                if inside:
                    return
                inside = fields[0] == "\\1-grams:"
            elif inside and len(fields) >= 2:
                yield fields[1]
    if not inside:
        raise InputError(f"{path} is not an ARPA file: it has no section \\1-grams:")
