"""Text as the models see it: normalised words, and tokenizers of pieces or characters."""

import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import sentencepiece

from speechkit.errors import InputError
from speechkit.files import replace

PIECES_FILE = "tokenizer.model"
CHARACTERS_FILE = "characters.json"
WORD_START = "▁"  # U+2581, how SentencePiece writes the space before a word

UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # scripts without spaces

_VOICING = "\u3099\u309a"  # what tells が from か and パ from ハ: no accents

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´′＇", "'"))
_LIGATURES = str.maketrans({"æ": "ae", "œ": "oe", "ß": "ss", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th"})


class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    pieces: list[str]

    def encode(self, text: str) -> list[int]:
        """Ids of normalised text; `InputError` names a character that no piece has."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...

    def groups(self, ids: Sequence[int]) -> list[list[int]]:
        """The positions in `ids` of the tokens of each word; what belongs to no word is in none."""
        ...

    def ends_word(self, token: int, following: int | None = None) -> bool:
        """Whether a word is over with a token when another follows; without one, whether it may be."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes what `load_tokenizer` reads."""
        ...


class SpacedWords:
    """Words of pieces that write spaces: a word starts with a piece that begins with U+2581, or after the piece " "."""

    pieces: list[str]

    def groups(self, ids: Sequence[int]) -> list[list[int]]:
        """As `Tokenizer.groups`; spaces and word starts without letters belong to the word after them."""
        groups: list[list[int]] = []
        open_word = False
        for position, token in enumerate(ids):
            piece = self.pieces[token]
            if piece == " ":
                open_word = False
                continue
            if piece.startswith(WORD_START) or not open_word:
                groups.append([])
                open_word = True
            groups[-1].append(position)
        return [group for group in groups if any(self.pieces[ids[i]] != WORD_START for i in group)]

    def ends_word(self, token: int, following: int | None = None) -> bool:
        """As `Tokenizer.ends_word`: what follows says it."""
        return following is None or self.pieces[following].startswith((" ", WORD_START))


def normalize(text: str) -> str:
    """Lower-case English letters, apostrophes inside words and single spaces, none between Chinese characters or kana.

    Accents are dropped, voicing marks of kana are not, and punctuation becomes a space. Kana and Hangul are composed
    (Unicode's NFC). Digits and other scripts have no spelling here: they stay, so that a tokenizer without them
    refuses the text instead of training on a gap.
    """
    text = text.lower().translate(_APOSTROPHES).translate(_LIGATURES)
    decomposed = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in decomposed if c in _VOICING or not unicodedata.combining(c))
    text = "".join(c for c in unicodedata.normalize("NFC", text) if c not in _VOICING)  # those of no kana
    text = re.sub(r"[^\w']|_", " ", text)
    text = re.sub(r"(?<!\w)'+|'+(?!\w)", " ", text)
    return re.sub(f"(?<=[{UNSPACED}]) (?=[{UNSPACED}])", "", " ".join(text.split()))


def space_between(left: str, right: str) -> str:
    """What stands between two texts: a space, or nothing at a border of a text or where Chinese or kana meet."""
    touching = not left or not right or re.fullmatch(f"[{UNSPACED}]{{2}}", left[-1] + right[0])
    return "" if touching else " "


def join_words(words: Iterable[str]) -> str:
    """Text of words or of longer texts."""
    parts: list[str] = []
    for word in words:
        parts += [space_between(parts[-1] if parts else "", word), word]
    return "".join(parts)


class SentencePieceTokenizer(SpacedWords):
    """Pieces of a SentencePiece model (Kudo 2018); an id is the model's own."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise InputError(f"a SentencePiece model was expected at {path}, but there is no such file")
        self._set(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, model: bytes, name: str = "SentencePiece model") -> "SentencePieceTokenizer":
        """A tokenizer from the content of a model file; `name` is for error messages."""
        self = cls.__new__(cls)
        self._set(model, name)
        return self

    def _set(self, model: bytes, name: str) -> None:
        self._model = model
        if not model:
            raise InputError(f"{name} is not a SentencePiece model, but empty (0 bytes)")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"{name} is not a SentencePiece model, or it is damaged") from error
        self.vocab_size: int = self._processor.get_piece_size()
        self.pieces: list[str] = [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        """Ids of the most probable segmentation; `InputError` where a character is in no piece."""
        ids: list[int] = self._processor.encode(text)
        unknown = self._processor.unk_id()
        if unknown in ids:
            pieces = self._processor.encode(text, out_type=str)
            raise unknown_character(text, pieces[ids.index(unknown)].strip(WORD_START) or " ")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return str(self._processor.decode(checked_ids(ids, self.vocab_size)))

    def save(self, folder: str | Path) -> None:
        """Writes ``tokenizer.model``."""
        replace(Path(folder) / PIECES_FILE, self._model, parents=True)


class CharTokenizer(SpacedWords):
    """One token per character, the space among them."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.pieces = list(symbols)
        self.vocab_size = len(self.pieces)
        self._ids = {symbol: i for i, symbol in enumerate(self.pieces)}
        wrong = [symbol for symbol in self.pieces if len(symbol) != 1]
        if not self.pieces or wrong or len(self._ids) != self.vocab_size:
            raise InputError(f"a character tokenizer needs different single characters, got {str(self.pieces)[:200]}")

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; `InputError` where one is unknown."""
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            raise unknown_character(text, error.args[0]) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, with single spaces between words."""
        return " ".join("".join(self.pieces[i] for i in checked_ids(ids, self.vocab_size)).split())

    def save(self, folder: str | Path) -> None:
        """Writes ``characters.json``."""
        replace(Path(folder) / CHARACTERS_FILE, json.dumps(self.pieces, ensure_ascii=False).encode(), parents=True)


def train_sentencepiece(
    texts: Iterable[str], folder: str | Path, vocab_size: int, model_type: str = "unigram"
) -> SentencePieceTokenizer:
    """Learns at most `vocab_size` pieces, fewer where a small corpus has no more, and saves them in `folder`.

    The same texts give the same pieces. Every character of the texts gets a piece.
    """
    if model_type not in ("unigram", "bpe"):
        raise InputError(f"SentencePiece trains 'unigram' or 'bpe' pieces here, got {model_type!r}")
    lines = [text for text in texts if text.strip()]
    if not lines:
        raise InputError("a tokenizer needs texts to train on, but all of them are empty")
    try:
        trained = _pieces(lines, vocab_size, model_type)
    except RuntimeError as error:
        needed = len({c for text in lines for c in text if not c.isspace()}) + 2  # the word start and <unk>
        raise InputError(
            f"no {model_type} tokenizer of {vocab_size} pieces can be trained on {len(lines)} texts with {needed} "
            f"characters: give a size over {needed} that the corpus can fill ({str(error).splitlines()[-1].strip()})"
        ) from error
    tokenizer = SentencePieceTokenizer.from_bytes(trained)
    tokenizer.save(folder)
    return tokenizer


def _pieces(lines: Sequence[str], vocab_size: int, model_type: str) -> bytes:
    """A SentencePiece model; RuntimeError where it needs more pieces."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, model_type=model_type,
            hard_vocab_limit=model_type != "unigram", character_coverage=1.0, unk_id=0, bos_id=-1, eos_id=-1,
            max_sentence_length=1 << 20, num_threads=4, minloglevel=3,
        )  # fmt: skip
    except RuntimeError as error:
        most = re.search(r"too high .* a value <= (\d+)", str(error))  # only unigrams have a soft limit
        if most is None:
            raise
        return _pieces(lines, int(most[1]), model_type)
    return model.getvalue()


def train_characters(texts: Iterable[str], folder: str | Path) -> CharTokenizer:
    """The characters of the texts, sorted, saved in `folder`."""
    symbols = sorted({c for text in texts for c in text} | {" "})
    if len(symbols) < 2:
        raise InputError("a tokenizer needs texts to train on, but all of them are empty")
    tokenizer = CharTokenizer(symbols)
    tokenizer.save(folder)
    return tokenizer


def steps_for_ctc(tokens: Sequence[int]) -> int:
    """Encoder steps that CTC needs at least: one per token, and a blank between equal neighbours."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def unknown_character(text: str, piece: str) -> InputError:
    """What to raise of a text whose character no piece of a tokenizer has."""
    character = piece[0]
    shown = text if len(text) <= 60 else text[:57] + "..."
    return InputError(
        f"the tokenizer has no piece for {character!r} (U+{ord(character):04X}) in the text {shown!r}: "
        "write it out in characters that the tokenizer knows, or train a tokenizer on texts that have it"
    )


def checked_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """Ids as whole numbers; ValueError where one is not of the vocabulary."""
    checked = [int(i) for i in ids]
    if checked and not (min(checked) >= 0 and max(checked) < vocab_size):
        raise ValueError(f"token ids should be 0..{vocab_size - 1}, got {min(checked)}..{max(checked)}")
    return checked
