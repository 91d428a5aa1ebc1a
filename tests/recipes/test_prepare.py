"""The download of LibriSpeech, from a server on this machine."""

import hashlib
import importlib.util
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from speechkit.data.manifest import read_manifest
from speechkit.errors import InputError
from tests.paths import ROOT


def _load() -> ModuleType:
    """Recipes are scripts: nothing imports them by name."""
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "recipes" / "librispeech" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = _load()


def flac(seconds: float = 0.1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(int(16000 * seconds)), 16000, format="FLAC")
    return buffer.getvalue()


def tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD: dict[str, bytes | tarfile.TarInfo] = {
    "LibriSpeech/README.TXT": b"about",
    "LibriSpeech/dev-clean/84/121/84-121-0000.flac": flac(),
    "LibriSpeech/dev-clean/84/121/84-121-0001.flac": flac(0.2),
    "LibriSpeech/dev-clean/84/121/84-121.trans.txt": b"84-121-0000 GO\n84-121-0001 DO YOU KNOW\n",
}


class Server(ThreadingHTTPServer):
    """Serves one file, with ranges; can break off after some bytes."""

    content = b""
    break_after: int | None = None
    ranges: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self.path.endswith("/dev-clean.tar.gz"):
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        limit, self.server.break_after = self.server.break_after, None
        self.wfile.write(body[:limit])

    def log_message(self, format: str, *arguments: object) -> None:
        """Not to the test's output."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.ranges = []
        running.content = tar(GOOD)
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(prepare.MD5, "dev-clean", hashlib.md5(server.content).hexdigest())
    return f"http://127.0.0.1:{server.server_port}/12"


def run(root: Path, url: str) -> int:
    status: int = prepare.main([str(root), "--splits", "dev-clean", "--url", url])
    return status


def test_a_split_is_downloaded_checked_and_unpacked(tmp_path: Path, url: str, server: Server) -> None:
    assert run(tmp_path, url) == 0
    folder = tmp_path / "dev-clean" / "84" / "121"
    assert sorted(path.name for path in folder.iterdir()) == [
        "84-121-0000.flac",
        "84-121-0001.flac",
        "84-121.trans.txt",
    ]
    assert (tmp_path / "README.TXT").read_text() == "about"
    assert not (tmp_path / "dev-clean.tar.gz").exists()
    listed = read_manifest(tmp_path / "manifests" / "dev-clean.jsonl")
    assert [(one.text, one.seconds) for one in listed] == [("GO", 0.1), ("DO YOU KNOW", 0.2)]
    assert run(tmp_path, url) == 0
    assert server.ranges == [""]


def test_a_broken_connection_is_resumed(tmp_path: Path, url: str, server: Server) -> None:
    server.break_after = 200
    assert run(tmp_path, url) == 0
    assert server.ranges == ["", "bytes=200-"]


def test_an_archive_that_is_there_is_checked(tmp_path: Path, url: str, server: Server) -> None:
    archive = tmp_path / "dev-clean.tar.gz"
    archive.write_bytes(server.content[:-1])
    assert run(tmp_path, url) == 2
    assert archive.exists()
    archive.write_bytes(server.content)
    assert run(tmp_path, url) == 0
    assert server.ranges == []


@pytest.mark.parametrize("have", [100, None])
def test_the_part_of_an_earlier_run_is_continued(tmp_path: Path, url: str, server: Server, have: int | None) -> None:
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(server.content[:have])
    assert run(tmp_path, url) == 0
    assert server.ranges == [f"bytes={have or len(server.content)}-"]
    assert (tmp_path / "dev-clean").is_dir()


def test_a_wrong_checksum_is_refused(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(prepare.MD5, "dev-clean", "0" * 32)
    assert run(tmp_path, url) == 2
    assert "expected 000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../outside.txt", b"x"),
        ("/absolute.flac", b"x"),
        ("LibriSpeech/dev-clean/84/../../../../outside.flac", b"x"),
        ("LibriSpeech/dev-clean/84/121/run.sh", b"x"),
        ("LibriSpeech/dev-clean/84/121/84-121-0002.flac", link("LibriSpeech/dev-clean/84/121/84-121-0002.flac")),
        ("LibriSpeech/README.TXT", link("LibriSpeech/README.TXT", tarfile.LNKTYPE)),
    ],
)
def test_a_foreign_member_is_refused(tmp_path: Path, name: str, content: bytes | tarfile.TarInfo) -> None:
    archive, root = tmp_path / "dev-clean.tar.gz", tmp_path / "root"
    archive.write_bytes(tar({**GOOD, name: content}))
    with pytest.raises(InputError, match="a member that LibriSpeech does not have"):
        prepare.unpack(archive, root, "dev-clean")
    assert not (root / "dev-clean").exists()
    assert [path.name for path in tmp_path.rglob("outside*")] == []


def test_a_truncated_archive_leaves_no_split(tmp_path: Path) -> None:
    archive = tmp_path / "dev-clean.tar.gz"
    content = tar(GOOD)
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError):
        prepare.unpack(archive, tmp_path, "dev-clean")
    assert [path.name for path in tmp_path.iterdir()] == ["dev-clean.tar.gz"]


def test_without_a_network_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "http://127.0.0.1:9/12") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: cannot download http://127.0.0.1:9/12/dev-clean.tar.gz")
    assert told.count("\n") == 1


def test_a_missing_file_names_the_servers_answer(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main([str(tmp_path), "--splits", "dev-other", "--url", url]) == 2
    assert "404" in capsys.readouterr().err
