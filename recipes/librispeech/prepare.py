"""Download LibriSpeech, check it, unpack it and write its manifests: what `data.root` of the recipe expects."""

import argparse
import hashlib
import http.client
import re
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from speechkit.data.manifest import from_librispeech, write_manifest
from speechkit.errors import InputError
from speechkit.startup import status

URL = "https://www.openslr.org/resources/12"
MD5 = {  # of SPLIT.tar.gz, as https://www.openslr.org/resources/12/md5sum.txt has them
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
ATTEMPTS = 5  # a connection that breaks is resumed
TIMEOUT_S = 60
_BLOCK = 1 << 20


def download(url: str, target: Path, md5: str) -> Path:
    """Fetches a file, unless it is there; a part that an earlier run left as TARGET.part is continued.

    Raises:
        InputError: no network, no such file, no room on the disk, or another checksum.
    """
    if target.is_file():
        _check(target, md5)
        return target
    part = target.with_name(f"{target.name}.part")
    for attempt in range(ATTEMPTS):
        try:
            _fetch(url, part)
            break
        except urllib.error.HTTPError as error:
            raise InputError(f"cannot download {url}: the server says {error.code} {error.reason}") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS - 1 or not part.exists():
                why = getattr(error, "reason", error)
                raise InputError(f"cannot download {url}: {why}; a later run goes on where this one stopped") from error
        except OSError as error:
            raise InputError(f"cannot write {part}: {error}") from error
    try:
        _check(part, md5)
    except InputError:
        part.unlink()  # else every later run would go on from it
        raise
    return part.replace(target)


def _check(archive: Path, md5: str) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise InputError(f"{archive} has the MD5 sum {found}, expected {md5}: it is damaged or another file")


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if have and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the checksum tells whether that is so
        raise
    with answer, _progress() as progress:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server cannot continue
        rest = int(answer.headers.get("Content-Length") or 0)
        part.parent.mkdir(parents=True, exist_ok=True)
        if rest > (free := shutil.disk_usage(part.parent).free):
            raise InputError(f"{part.parent} has {free / 1e9:.1f} GB free, {url} needs {rest / 1e9:.1f} GB more")
        bar = progress.add_task(part.stem, total=have + rest or None, completed=have)
        received = 0
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                received += len(block)
                progress.advance(bar, len(block))
    if received < rest:
        raise http.client.IncompleteRead(b"", rest - received)


def unpack(archive: Path, root: Path, split: str) -> Path:
    """Unpacks LibriSpeech/SPLIT of an archive into ROOT/SPLIT, which appears when it is complete.

    Raises:
        InputError: a member that LibriSpeech does not have (another path, a link, a device), or a damaged archive.
    """
    speech = re.compile(rf"LibriSpeech/({re.escape(split)}/\d+/\d+/[\d-]+(?:\.flac|\.trans\.txt))")
    about = re.compile(r"LibriSpeech/([A-Z]+\.TXT)")
    work = root / f".{split}.unpacking"
    shutil.rmtree(work, ignore_errors=True)
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                if member.isdir():
                    continue
                name = speech.fullmatch(member.name) or about.fullmatch(member.name)
                content = members.extractfile(member) if name and member.isreg() else None
                if name is None or content is None:
                    raise InputError(f"{archive} has a member that LibriSpeech does not have: {member.name}")
                path = work / name[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file, _BLOCK)
        if not (work / split).is_dir():
            raise InputError(f"{archive} has no split {split}")
        for text in work.glob("*.TXT"):
            text.replace(root / text.name)
        return (work / split).replace(root / split)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"cannot unpack {archive}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def prepare(root: Path, splits: Sequence[str], url: str = URL, keep: bool = False) -> None:
    """Brings each split to ROOT/SPLIT, unless it is there, and writes ROOT/manifests/SPLIT.jsonl."""
    for split in splits:
        if not (root / split).is_dir():
            archive = download(f"{url.rstrip('/')}/{split}.tar.gz", root / f"{split}.tar.gz", MD5[split])
            unpack(archive, root, split)
            if not keep:
                archive.unlink()
        write_manifest(root / "manifests" / f"{split}.jsonl", from_librispeech(root, split))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 after one sentence on what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m recipes.librispeech.prepare", description=__doc__)
    parser.add_argument("root", type=Path, help="folder for the splits, later data.root")
    parser.add_argument(
        "--splits", nargs="+", choices=sorted(MD5), default=sorted(MD5), metavar="SPLIT", help="of: %(choices)s"
    )
    parser.add_argument("--url", default=URL, help="where SPLIT.tar.gz lies: a mirror (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the archives")
    chosen = parser.parse_args(arguments)
    return status(lambda: prepare(chosen.root, chosen.splits, chosen.url, chosen.keep))


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, disable=not sys.stderr.isatty(), transient=True)


if __name__ == "__main__":
    sys.exit(main())
