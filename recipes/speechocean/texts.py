"""English sentences for synthetic speech, and the tokenizer of a model that hears them.

    python -m recipes.speechocean.texts texts.txt CORPUS/train-l2 --tokenizer FOLDER
    python -m speechkit.data.mini OUT --texts texts.txt --minutes 3060 --split train-synthetic

Three sources: `sentences.txt` beside this file, twelve thousand sentences of conversation, news and stories that were
written for speechkit (Apache-2.0, as the rest of it); the transcripts of the corpora that are named, so that the voices
of the generator read them as well; and, for more words, the documentation of the Python packages that are installed.
"""

import argparse
import ast
import random
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from speechkit.errors import InputError
from speechkit.files import replace
from speechkit.startup import status
from speechkit.text import normalize, train_sentencepiece

WORDS = range(3, 23)  # of a sentence
LONGEST = 15  # letters of a word
COMMON = 4  # a word must occur so often: names from code seldom do
REPEATS = 3  # of the written sentences and the transcripts
PIECES = 256
WRITTEN = Path(__file__).parent / "sentences.txt"


def documentation(folders: Iterable[Path]) -> Iterator[str]:
    """Docstrings of the Python files below the folders, tests left out."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if {"test", "tests"} & set(path.parts):
                continue
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError, RecursionError, OSError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text that are plain English, lower case, without punctuation."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?:;])\s+", re.sub(r"\s+", " ", paragraph)):
            plain = sentence.strip().rstrip(".!?:;")
            words = re.sub("[,-]", " ", plain).split()
            if not re.fullmatch(r"[A-Za-z][A-Za-z' ,-]*", plain) or len(words) not in WORDS:
                continue
            if not any(_is_code(word) for word in words):
                yield " ".join(words).lower()


def _is_code(word: str) -> bool:
    letter = len(word) == 1 and word.lower() not in "ai"
    return letter or len(word) > LONGEST or (len(word) > 1 and word.isupper()) or bool(re.search("[a-z][A-Z]", word))


def common(found: Iterable[str], least: int = COMMON) -> list[str]:
    """Different sentences all of whose words occur at least so often among them."""
    different = sorted(set(found))
    counts = Counter(word for sentence in different for word in sentence.split())
    return [sentence for sentence in different if all(counts[word] >= least for word in sentence.split())]


def written() -> list[str]:
    """The sentences written for speechkit, with commas, where a reader pauses."""
    return WRITTEN.read_text(encoding="utf-8").splitlines()


def transcripts(folder: Path) -> list[str]:
    """The texts of a folder in LibriSpeech's layout, lower case."""
    lines = [line for path in sorted(folder.rglob("*.trans.txt")) for line in path.read_text().splitlines()]
    if not lines:
        raise InputError(f"there are no transcripts (*.trans.txt) in {folder}")
    return [line.split(" ", 1)[1].lower() for line in lines if " " in line]


def collect(corpora: Iterable[Path], most: int) -> list[str]:
    """Written sentences and transcripts, `REPEATS` times, and at most so many of documentation, in a drawn order.

    Raises:
        InputError: a corpus has no transcripts.
    """
    rng = random.Random(0)
    found = REPEATS * [*written(), *(text for folder in corpora for text in transcripts(folder))]
    if most:  # minutes
        folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
        documented = common(sentence for text in documentation(folders) for sentence in sentences(text))
        found += rng.sample(documented, min(most, len(documented)))
    rng.shuffle(found)
    return found


def write(out: Path, corpora: Iterable[Path], most: int, tokenizer: Path | None) -> None:
    """The sentences that `collect` finds, one a line, and perhaps a tokenizer of them; raises as `collect`."""
    found = collect(corpora, most)
    replace(out, "".join(f"{sentence}\n" for sentence in found).encode())
    print(f"{len(found)} sentences in {out}")
    if tokenizer is not None:
        train_sentencepiece([normalize(text) for text in found], tokenizer, PIECES, "unigram")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="English sentences for synthetic speech.")
    parser.add_argument("out", type=Path)
    parser.add_argument("corpora", type=Path, nargs="*", help="folders in LibriSpeech's layout, to read their texts")
    parser.add_argument("--documentation", type=int, default=12_000, help="sentences of Python packages at most")
    parser.add_argument("--tokenizer", type=Path, help=f"folder for a tokenizer of {PIECES} pieces")
    chosen = parser.parse_args(arguments)
    return status(lambda: write(chosen.out, chosen.corpora, chosen.documentation, chosen.tokenizer))


if __name__ == "__main__":
    sys.exit(main())
