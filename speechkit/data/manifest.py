"""Lists of utterances: what a user names becomes one, be it a split, a table or a folder of a known layout."""

import logging
from pathlib import Path

from speechkit.data.layout import from_lhotse_shar, from_librispeech, from_ljspeech, nearest
from speechkit.data.table import from_folder, read_manifest, write_manifest
from speechkit.data.utterance import MAX_BAD, Usable
from speechkit.errors import InputError

__all__ = [
    "find",
    "from_folder",
    "from_lhotse_shar",
    "from_librispeech",
    "from_ljspeech",
    "read_manifest",
    "write_manifest",
]

log = logging.getLogger(__name__)


def find(name: str, root: Path | None, cache_dir: Path, max_bad: float = MAX_BAD) -> Usable:
    """What a user names in `data.train`: a split of `root`, a table (.jsonl, .tsv), or a folder of a known layout.

    A split of `root` comes from ROOT/manifests/SPLIT.jsonl where that is, else from LibriSpeech's layout. A folder
    may be one split of LibriSpeech's layout, LJSpeech (metadata.csv) or Lhotse Shar (cuts.*.jsonl.gz, unpacked to
    `cache_dir` once).

    Raises:
        InputError: there is nothing of that name, or too much of it cannot be used.
    """
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", ".json"):
        return read_manifest(path, max_bad)
    if path.suffix == ".tsv":
        return from_folder(path.parent, path, max_bad)
    if root is not None and (written := root / "manifests" / f"{name}.jsonl").is_file():
        log.info("%s: from %s", name, written)
        return read_manifest(written, max_bad)
    if root is not None and (root / name).is_dir():
        return from_librispeech(root, name, max_bad)
    if (path / "metadata.csv").is_file():
        return from_ljspeech(path, max_bad)
    if any(path.glob("cuts.*.jsonl*")):
        return from_lhotse_shar(path, cache_dir / "shar" / path.resolve().name, max_bad)
    if path.is_dir() and any(path.glob("*/*/*.trans.txt")):
        return from_librispeech(path.parent, path.name, max_bad)
    if root is not None:
        raise InputError(f"There is no split {name} in {root}{nearest(root, name)}.")
    raise InputError(
        f"{name} is neither a manifest (.jsonl, .tsv) nor a folder in the layout of LibriSpeech, LJSpeech or Lhotse "
        "Shar; the name of a split needs the folder of its corpus (data.root)."
    )
