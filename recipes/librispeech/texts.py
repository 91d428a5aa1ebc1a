"""English sentences for synthetic speech, taken from the documentation of the Python packages that are installed.

    python -m recipes.librispeech.texts texts.txt [transcripts.trans.txt ...]
    python -m speechkit.data.mini OUT --texts texts.txt --minutes 2400 --split train-synthetic

A machine without a network has no books, but a hundred thousand sentences in docstrings. Sentences of the given
LibriSpeech transcripts are added four times, so that the voices of the generator read them as well.
"""

import argparse
import ast
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

WORDS = range(3, 23)  # of a sentence
LONGEST = 15  # letters of a word
COMMON = 4  # a word must occur so often: names from code seldom do
REPEATS = 4  # of the transcripts


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("transcripts", type=Path, nargs="*", help="ID TEXT lines; their texts are added four times")
    chosen = parser.parse_args(arguments)
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    found = common(sentence for text in documentation(folders) for sentence in sentences(text))
    for path in chosen.transcripts:
        found += REPEATS * [line.split(" ", 1)[1].lower() for line in path.read_text().splitlines() if " " in line]
    random.Random(0).shuffle(found)
    chosen.out.write_text("\n".join(found) + "\n")
    print(f"{len(found)} sentences in {chosen.out}")


if __name__ == "__main__":
    main()
