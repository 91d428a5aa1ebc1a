"""The tokenizer of a folder, whichever kind it is."""

import json
from pathlib import Path

from speechkit.errors import InputError
from speechkit.text import CHARACTERS_FILE, PIECES_FILE, CharTokenizer, SentencePieceTokenizer, Tokenizer
from speechkit.token_list import LIST_FILE, WORDS_FILE, read_list

TOKENIZER_FILES = (PIECES_FILE, CHARACTERS_FILE, LIST_FILE, WORDS_FILE)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that a folder holds: ``tokenizer.model``, ``characters.json`` or ``tokens.json``."""
    pieces, characters = Path(folder) / PIECES_FILE, Path(folder) / CHARACTERS_FILE
    if pieces.is_file():
        return SentencePieceTokenizer(pieces)
    if (Path(folder) / LIST_FILE).is_file():
        return read_list(Path(folder))
    if not characters.is_file():
        raise InputError(f"{folder} holds no tokenizer: {PIECES_FILE}, {CHARACTERS_FILE} or {LIST_FILE} was expected")
    try:
        symbols = json.loads(characters.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{characters} is not a list of characters in JSON: {error}") from error
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise InputError(f"{characters} should hold a list of characters in JSON, got {str(symbols)[:50]}")
    try:
        return CharTokenizer(symbols)
    except InputError as error:
        raise InputError(f"{characters} holds no tokenizer: {error}") from error
