"""How commands begin and end: Ctrl-C in the seconds of importing, standard streams that are closed or full."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from speechkit import audio
from speechkit.errors import InputError
from speechkit.startup import ctrl_c_raises, printing, starting, status
from tests.asr.tiny import babble, release
from tests.paths import ROOT, hear_ctrl_c

COMMANDS = {
    "train": ["-m", "speechkit.train", "recipe=librispeech_conformer"],
    "eval": ["-m", "speechkit.eval", "model=nowhere"],
    "speechkit train": ["-m", "speechkit", "train", "recipe=librispeech_conformer"],
    "speechkit transcribe": ["-m", "speechkit", "transcribe", "a.wav"],
    "speechkit": ["-m", "speechkit", "--help"],
}


def heard_while_importing(module: str, folder: Path, command: list[str]) -> tuple[int, str]:
    """Exit code and error output of a command that gets Ctrl-C while it imports a module."""
    (folder / f"{module}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        return process.wait(30), process.stderr.read()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_ctrl_c_while_all_is_imported_is_130_without_a_traceback(name: str, tmp_path: Path) -> None:
    heavy = "typer" if name == "speechkit" else "torch"
    assert heard_while_importing(heavy, tmp_path, COMMANDS[name]) == (130, "")


def test_ctrl_c_while_the_configuration_is_composed_is_130(tmp_path: Path) -> None:
    """Hydra's plugins are imported then, from the package of that name."""
    (tmp_path / "hydra_plugins").mkdir()
    command = COMMANDS["train"]
    assert heard_while_importing("hydra_plugins/slow", tmp_path, command) == (130, "")


def test_only_imports_end_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with starting():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job in the background
        with starting():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ctrl_c_raises()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_error_of_a_file_is_not_taken_for_the_output() -> None:
    with pytest.raises(OSError, match="somewhere"), printing():
        raise OSError(errno.EIO, "bad disk", "somewhere")


# What a shell may do to standard streams


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording and a model."""
    folder = tmp_path_factory.mktemp("heard")
    audio.write(folder / "a.wav", babble(1))
    release(folder / "model")
    return folder


@pytest.fixture
def shell(heard: Path) -> Callable[[str, str], tuple[int, str, str]]:
    """A command with redirections: exit code, output, errors."""

    def run(command: str, redirected: str) -> tuple[int, str, str]:
        line = f"{sys.executable} -m speechkit {command} {redirected}"
        done = subprocess.run(
            ["sh", "-c", line], cwd=ROOT, env={**os.environ, "HEARD": str(heard)}, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    return run


TRANSCRIBE = 'transcribe --decoder ctc --model "$HEARD/model" "$HEARD/a.wav"'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", [TRANSCRIBE + " --stream", "--version"])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_output_is_one_sentence(
    shell: Callable[[str, str], tuple[int, str, str]], command: str, buffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", buffered)
    code, _, error = shell(command, "> /dev/full")
    assert (code, error) == (2, "error: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("redirected", "code", "error"),
    [
        (">&-", 2, "error: standard output is closed: name a folder for the texts with --output\n"),
        ('>&- --output "$HEARD/texts"', 0, ""),
        ("<&-", 0, ""),
        ("- <&-", 2, "error: standard input is closed: send audio through a pipe, as in ffmpeg ... | speechkit ...\n"),
        ("nothing.wav 2>&-", 2, ""),
        (">&- 2>&- <&-", 2, ""),
    ],
)
def test_closed_streams_are_no_traceback(
    shell: Callable[[str, str], tuple[int, str, str]], heard: Path, redirected: str, code: int, error: str
) -> None:
    found, out, said = shell(TRANSCRIBE, redirected)
    assert (found, said) == (code, error)
    assert bool(out) == (">&-" not in redirected.replace("2>&-", ""))
    if "--output" in redirected:
        assert (heard / "texts" / "a.txt").read_text().strip()


def test_a_small_command_ends_as_the_large_ones_do(capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> None:
        raise InputError("no such thing")

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert [status(lambda: None), status(refused), status(interrupted)] == [0, 2, 130]
    assert capsys.readouterr().err == "error: no such thing\n"
