"""A list of tokens as FunASR's models have it: characters of scripts without spaces, and pieces of other words."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from speechkit.errors import InputError
from speechkit.files import replace
from speechkit.text import UNSPACED, checked_ids, join_words, unknown_character

LIST_FILE, WORDS_FILE = "tokens.json", "seg_dict"
JOINED = "@@"  # at the end of a piece with which the next one makes a word
SILENT = ("<blank>", "<s>", "</s>")
UNITS = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


class ListTokenizer:
    """Tokens that are written out: ``我``, ``hello``, or ``he@@`` before ``llo``.

    Args:
        tokens: in the order of their ids.
        words: how words are put together that are no token themselves; others are put together of as few
            pieces as can be, of several ways by the longest piece first.

    Raises:
        InputError: a token is there twice, or there is none.
    """

    def __init__(self, tokens: Sequence[str], words: Mapping[str, Sequence[str]] | None = None) -> None:
        self.pieces = list(tokens)
        self.vocab_size, self.words = len(self.pieces), dict(words or {})
        self._ids = {token: i for i, token in enumerate(self.pieces)}
        if not self.pieces or len(self._ids) != self.vocab_size:
            raise InputError(f"a list of tokens needs different ones, got {str(self.pieces)[:200]}")
        self._longest = max(map(len, self.pieces))

    def encode(self, text: str) -> list[int]:
        """Ids of a text; `InputError` where a character is in no token."""
        return [self._ids[piece] for unit in UNITS.findall(text) for piece in self._split(unit, text)]

    def _split(self, unit: str, text: str) -> list[str]:
        if unit in self._ids:
            return [unit]
        if unit in self.words and all(piece in self._ids for piece in self.words[unit]):
            return list(self.words[unit])
        rests = {len(unit): (0, 0)}  # of the unit, by their beginning: how many pieces, and minus the first one's end
        for begin in reversed(range(len(unit))):
            if ways := [(1 + rests[end][0], -end) for end in self._ends(unit, begin) if end in rests]:
                rests[begin] = min(ways)
        if 0 not in rests:
            raise unknown_character(text, unit[self._reach(unit)])
        pieces, begin = [], 0
        while begin < len(unit):
            end = -rests[begin][1]
            pieces.append(_piece(unit, begin, end))
            begin = end
        return pieces

    def _ends(self, unit: str, begin: int) -> Iterator[int]:
        """Where pieces end that begin there."""
        last = min(len(unit), begin + self._longest)
        return (end for end in range(begin + 1, last + 1) if _piece(unit, begin, end) in self._ids)

    def _reach(self, unit: str) -> int:
        """How far pieces get that leave nothing out."""
        reached = {0}
        for begin in range(len(unit)):
            if begin in reached:
                reached.update(self._ends(unit, begin))
        return max(reached)

    def groups(self, ids: Sequence[int]) -> list[list[int]]:
        """As `Tokenizer.groups`: a token that is no piece of a longer word is one."""
        groups: list[list[int]] = []
        open_word = False
        for position, token in enumerate(ids):
            piece = self.pieces[token]
            if piece in SILENT:
                continue
            if not open_word:
                groups.append([])
            groups[-1].append(position)
            open_word = piece.endswith(JOINED)
        return groups

    def ends_word(self, token: int, following: int | None = None) -> bool:
        """As `Tokenizer.ends_word`: the token itself says it."""
        return not self.pieces[token].endswith(JOINED)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ids = checked_ids(ids, self.vocab_size)
        groups = ([self.pieces[ids[i]].removesuffix(JOINED) for i in group] for group in self.groups(ids))
        return join_words("".join(group) for group in groups)

    def save(self, folder: str | Path) -> None:
        """Writes ``tokens.json``, and ``seg_dict`` where there are words."""
        replace(Path(folder) / LIST_FILE, json.dumps(self.pieces, ensure_ascii=False).encode(), parents=True)
        if self.words:
            lines = "".join(f"{word} {' '.join(pieces)}\n" for word, pieces in self.words.items())
            replace(Path(folder) / WORDS_FILE, lines.encode(), parents=True)


def _piece(unit: str, begin: int, end: int) -> str:
    return unit[begin:end] + JOINED * (end < len(unit))


def read_list(folder: Path) -> ListTokenizer:
    """The tokenizer of a folder that holds ``tokens.json``.

    Raises:
        InputError: it is damaged.
    """
    path, words = folder / LIST_FILE, folder / WORDS_FILE
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))
        lines = words.read_text(encoding="utf-8").splitlines() if words.is_file() else []
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a list of tokens in JSON: {error}") from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{path} should hold a list of tokens in JSON, got {str(tokens)[:50]}")
    found = (line.split() for line in lines)
    try:
        return ListTokenizer(tokens, {line[0]: line[1:] for line in found if len(line) > 1})
    except InputError as error:
        raise InputError(f"{path} holds no tokenizer: {error}") from error


def train_list(texts: Iterable[str], folder: str | Path) -> ListTokenizer:
    """The characters of scripts without spaces, and the letters of the words of others; saved in `folder`."""
    tokens: set[str] = set()
    for text in texts:
        for unit in UNITS.findall(text):
            tokens |= {unit} if len(unit) == 1 else {letter + JOINED for letter in unit[:-1]} | {unit[-1]}
    if not tokens:
        raise InputError("a tokenizer needs texts to train on, but all of them are empty")
    tokenizer = ListTokenizer(sorted(tokens))
    tokenizer.save(folder)
    return tokenizer
