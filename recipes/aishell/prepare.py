"""Write the manifests of AISHELL-1, which the recipe's `data.root` then finds.

    python -m recipes.aishell.prepare /path/to/data_aishell

The folder is what the corpus' own archives unpack to: ``wav/{train,dev,test}/SPEAKER/ID.wav`` and
``transcript/aishell_transcript_v0.8.txt``. Recordings without a transcript, of which AISHELL-1 has some, are left out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechkit.data.manifest import write_manifest
from speechkit.data.table import read_lines
from speechkit.data.utterance import Utterance, probed
from speechkit.errors import InputError
from speechkit.startup import status

SPLITS = {"train-aishell": "train", "dev-aishell": "dev", "test-aishell": "test"}  # and their folders
TRANSCRIPT = Path("transcript") / "aishell_transcript_v0.8.txt"


def utterances(root: Path, split: str, texts: dict[str, str]) -> Iterator[Utterance]:
    """The recordings of a split that have a transcript."""
    for path in sorted((root / "wav" / SPLITS[split]).glob("*/*.wav")):
        if path.stem in texts:
            yield Utterance(path.stem, str(path), texts[path.stem], 0.0, 0, path.parent.name, split)


def transcripts(root: Path) -> dict[str, str]:
    """Text by id.

    Raises:
        InputError: there is no transcript.
    """
    path = root / TRANSCRIPT
    if not path.is_file():
        raise InputError(f"{root} is no AISHELL-1: it holds no {TRANSCRIPT}")
    pairs = (line.strip().partition(" ") for line in read_lines(path))
    return {name: text.strip() for name, _, text in pairs if name and text.strip()}


def prepare(root: Path) -> dict[str, int]:
    """Writes ``manifests/{train,dev,test}-aishell.jsonl``: how many utterances each has.

    Raises:
        InputError: the folder is no AISHELL-1, or a split has no recording with a transcript.
    """
    root, texts, counts = root.expanduser().resolve(), transcripts(root), {}
    for split in SPLITS:
        there = list(utterances(root, split, texts))
        if not there:
            raise InputError(
                f"{root / 'wav' / SPLITS[split]} holds no recording (SPEAKER/ID.wav) that has a transcript"
            )
        found = probed(there).within(0.01, split)
        target = root / "manifests" / f"{split}.jsonl"
        target.parent.mkdir(exist_ok=True)
        write_manifest(target, found)
        counts[split] = len(found)
    return counts


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder data_aishell")
    root = parser.parse_args(words).root

    def run() -> None:
        for split, count in prepare(root).items():
            print(f"{split}: {count} utterances")
        print(f"train: python -m speechkit.train recipe=aishell_paraformer data.root={root}")

    return status(run)


if __name__ == "__main__":
    sys.exit(main())
