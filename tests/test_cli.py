"""The `speechkit` command: what it prints, how it ends, and that it starts quickly."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import speechkit
from speechkit import audio, cli, hub
from speechkit.asr.decoding.words import Word
from speechkit.asr.transcript import Transcript
from speechkit.commands import doctor, transcribing
from speechkit.commands.formats import Plain
from tests.asr.tiny import babble, release
from tests.paths import ROOT, hear_ctrl_c


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(release(tmp_path_factory.mktemp("models") / "release"))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    audio.write(path, babble(4))
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def started(*arguments: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return started


@pytest.fixture
def transcribe(run: Run, model: str) -> Run:
    return lambda *arguments: run("transcribe", "--model", model, "--decoder", "ctc", *arguments)


def child(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "speechkit", *arguments]


# Starting


def test_help_imports_no_torch() -> None:
    command = (
        "import sys\nfrom speechkit import cli\ntry:\n    cli.main(['transcribe', '--help'])\nexcept SystemExit:\n"
        "    heavy = {'torch', 'numpy', 'lightning', 'hydra'} & set(sys.modules)\n    sys.exit(3 if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--latency-ms" in done.stdout


def test_the_help_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert {"train", "eval", "transcribe", "bench", "doctor"} <= set(result.out.split())
    assert run("--version").out.strip() == speechkit.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        ["listen"], ["transcribe"], ["transcribe", "a.wav", "--format", "docx"], ["transcribe", "a.wav", "--beam", "0"],
        ["transcribe", "a.wav", "--nbest", "0"], ["transcribe", "a.wav", "--hotword-weight", "nan"],
        ["transcribe", "a.wav", "--latency-ms", "nan"], ["transcribe", "a.wav", "--threads", "0"],
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert "Error" in result.err


@pytest.mark.parametrize("name", ["train", "eval"])
def test_hydra_entry_points_get_the_words_of_the_command(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    module = type(sys)(f"speechkit.{name}")
    module.main = lambda: seen.append(sys.argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"speechkit.{name}", module)
    before = list(sys.argv)
    assert run(name, "recipe=x", "--cfg", "job", "--help", "-m").code == 0
    assert seen == [[f"speechkit {name}", "recipe=x", "--cfg", "job", "--help", "-m"]]
    assert sys.argv == before


def test_bench_gets_its_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def bench(size: int = 1) -> None:
        seen.append(size)

    module = type(sys)("speechkit.commands.bench")
    module.bench = bench  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "speechkit.commands.bench", module)
    assert run("bench", "--size", "7").code == 0
    assert seen == [7]
    assert "--size" in run("bench", "--help").out


# What transcribe prints


def test_all_ways_print_one_text(transcribe: Run, speech: str, model: str) -> None:
    text = speechkit.load(model).transcribe(speech, latency_ms=80, decoder="ctc").text
    assert len(text.split()) > 3
    for options in ([], ["--stream"], ["--threads", "1"], ["--hotword-weight", "9"]):
        assert transcribe(speech, "--latency-ms", "80", *options) == (0, text + "\n", ""), options
    assert transcribe(speech, "--latency-ms", "0").out != text + "\n"


@pytest.mark.parametrize("kind", ["text", "json", "srt", "vtt"])
@pytest.mark.parametrize("words", [[], ["--words"]])
def test_a_stream_prints_what_the_whole_prints(transcribe: Run, speech: str, kind: str, words: list[str]) -> None:
    whole = transcribe(speech, "--format", kind, *words)
    live = transcribe(speech, "--format", kind, "--stream", *words)
    assert whole.code == 0
    assert len(whole.out) > 12
    if kind == "json":
        one, other = json.loads(whole.out), json.loads(live.out)
        for record in (one, other):
            record.pop("confidence")
            for word in record.get("words", []):
                word.pop("confidence")
        assert one == other
        assert ("words" in one) == bool(words)
    else:
        assert live == whole


def test_a_folder_streamed_word_by_word_is_the_folder_whole(transcribe: Run, model: str, tmp_path: Path) -> None:
    """Recordings of all kinds of length, at the least look-ahead but one; neither mode keeps anything for the next."""
    for i, seconds in enumerate((0.2, 1.0, 2.6, 4.2)):
        audio.write(tmp_path / f"{i}.wav", babble(seconds, seed=i)[: round(seconds * 16_000) - 77 * i])
    found = {}
    for options in ([], ["--stream"]):
        whole = transcribe(str(tmp_path), "--latency-ms", "80", *options)
        rows = transcribe(str(tmp_path), "--latency-ms", "80", "--words", *options)
        assert (whole.code, rows.code, whole.err + rows.err) == (0, 0, "")
        found[bool(options)] = (whole.out, rows.out)
    assert found[True] == found[False]
    texts = dict(line.split(": ") for line in found[True][0].splitlines())
    told: dict[str, list[str]] = {name: [] for name in texts}
    for row in found[True][1].splitlines():
        told[row.split(": ")[0]].append(row.split()[-1])
    assert {name: " ".join(words) for name, words in told.items()} == texts
    assert sum(map(len, told.values())) > 6
    assert [Path(name).name for name in texts] == ["0.wav", "1.wav", "2.wav", "3.wav"]


def test_words_come_with_times_and_confidence(transcribe: Run, speech: str, model: str) -> None:
    expected = speechkit.load(model).transcribe(speech, decoder="ctc").words
    rows = [line.split() for line in transcribe(speech, "--words").out.splitlines()]
    assert [row[3] for row in rows] == [word.text for word in expected]
    for row, word in zip(rows, expected, strict=True):
        numbers = [word.start_s, word.end_s, word.confidence]
        assert [float(cell) for cell in row[:3]] == pytest.approx(numbers, abs=0.006)


def test_words_are_printed_while_the_sound_comes(model: str, speech: str) -> None:
    """Standard input stays open, and the first words are there."""
    wave = (audio.read(speech) * 2**15).astype("<i2").tobytes()
    command = child("transcribe", "--model", model, "--stream", "--words", "--raw-rate", "16000", "-")
    pipe = subprocess.PIPE
    command += ["--decoder", "ctc"]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=hear_ctrl_c) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        assert p.stderr is not None
        p.stdin.write(wave)
        p.stdin.flush()
        lines = [p.stdout.readline().decode() for _ in range(2)]
        p.send_signal(signal.SIGINT)
        error = p.stderr.read().decode()
        assert p.wait(30) == 130
    assert all(re.fullmatch(r" +\d+\.\d\d +\d+\.\d\d  [01]\.\d\d  [a-h]+\n", line) for line in lines)
    assert "Traceback" not in error


def test_a_reader_that_has_enough_is_no_error(model: str, speech: str) -> None:
    command = child("transcribe", "--model", model, "--decoder", "ctc", "--stream", "--words", *[speech] * 3)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read().decode()
        assert process.wait(60) == 141
    assert error == ""


def test_standard_input_is_read_as_wav(transcribe: Run, speech: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = transcribe(speech).out
    for options in ([], ["--stream"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(speech).read_bytes())))
        assert transcribe("-", *options).out == text
    raw = (audio.read(speech) * 2**15).astype("<i2").tobytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert transcribe("-", "--raw-rate", "16000").out == text


def test_a_terminal_is_not_listened_to(transcribe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    result = transcribe("-")
    assert result.code == 2
    assert "standard input is a terminal" in result.err


def test_folders_are_searched_and_names_stand_before_texts(transcribe: Run, speech: str, tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    audio.write(tmp_path / "b" / "c" / "one.flac", audio.read(speech))
    audio.write(tmp_path / "b" / "two.ogg", babble(1))
    (tmp_path / "b" / "notes.txt").write_text("no sound")
    lines = transcribe(str(tmp_path / "b")).out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / "b" / name) for name in ("c/one.flac", "two.ogg")]
    assert lines[0].split(": ")[1] == transcribe(speech).out.strip()


def test_one_bad_file_does_not_stop_the_others(transcribe: Run, speech: str, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    for options in ([], ["--stream"]):
        result = transcribe(speech, str(tmp_path / "bad.wav"), str(tmp_path / "empty"), speech, *options)
        assert result.code == 2
        assert len(result.out.splitlines()) == 2
        errors = result.err.splitlines()
        assert len(errors) == 2
        assert all(line.startswith("error: ") for line in errors)
        assert "holds no audio files" in errors[0]
        assert "bad.wav is not audio" in errors[1]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text here")
def test_a_name_that_is_no_text_is_written_as_it_is(transcribe: Run, speech: str, model: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    recording = folder / os.fsdecode(b"th\xe9.wav")
    recording.write_bytes(Path(speech).read_bytes())
    (folder / os.fsdecode(b"x\xe9.wav")).write_bytes(b"no sound")
    text = transcribe(speech).out
    done = subprocess.run(
        child("transcribe", "--model", model, "--decoder", "ctc", str(folder)), cwd=ROOT, capture_output=True
    )
    assert done.returncode == 2
    assert done.stdout == os.fsencode(recording) + b": " + text.encode()
    assert re.fullmatch(rb"error: [^\n]*x\\udce9\.wav is not audio[^\n]*\n", done.stderr)
    record = json.loads(transcribe(str(recording), "--format", "json").out)
    assert (record["file"], record["text"] + "\n") == (str(recording), text)
    for kind in ("json", "srt"):
        assert transcribe(str(recording), "--format", kind, "--output", str(folder)).code == 0
        assert recording.with_suffix(f".{kind}").read_text(encoding="utf-8")


def test_what_came_before_a_file_breaks_off_stays(transcribe: Run, speech: str, tmp_path: Path) -> None:
    (tmp_path / "cut.wav").write_bytes(Path(speech).read_bytes()[:90_000])
    result = transcribe(str(tmp_path / "cut.wav"), "--stream")
    assert result.code == 2
    assert result.out.endswith("\n")
    assert len(result.out.split()) > 3
    assert transcribe(speech).out.startswith(result.out.strip()[:-1])
    assert re.fullmatch(r"error: .*cut\.wav is truncated: .*\n", result.err)


def test_a_folder_gets_a_file_for_each_recording(transcribe: Run, speech: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "x").mkdir(parents=True)
    audio.write(tmp_path / "in" / "x" / "talk.v2.flac", audio.read(speech))
    result = transcribe(speech, str(tmp_path / "in"), "--format", "srt", "--output", str(tmp_path / "out"))
    assert result == (0, "", "")
    alone = transcribe(speech, "--format", "srt").out
    assert alone.startswith("1\n00:00:0")
    assert (tmp_path / "out" / "speech.srt").read_text() == alone
    assert (tmp_path / "out" / "x" / "talk.v2.srt").read_text() == alone


def test_hotwords_come_from_the_line_or_a_file(transcribe: Run, speech: str, tmp_path: Path) -> None:
    plain = transcribe(speech).out
    line = transcribe(speech, "--hotwords", "bad:3, cab", "--hotword-weight", "3")
    (tmp_path / "names").write_text("# whom we meet\nbad:3\n\ncab\n")
    assert line.out != plain
    assert transcribe(speech, "--hotwords", str(tmp_path / "names"), "--hotword-weight", "3", "--stream") == line


def test_a_search_gives_several_texts_and_takes_a_language_model(transcribe: Run, speech: str, tmp_path: Path) -> None:
    lines = transcribe(speech, "--nbest", "3").out.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 3
    assert scores == sorted(scores, reverse=True)
    record = json.loads(transcribe(speech, "--beam", "4", "--nbest", "2", "--format", "json").out)
    assert len(record["hypotheses"]) == 2
    assert record["hypotheses"][0]["text"] == record["text"]
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    arpa = tmp_path / "words.arpa"
    unigrams = "".join(f"{p}\t{w}\t0\n" for p, w in [(-9, "<unk>"), (-1, "<s>"), (-0.5, "</s>"), (-0.1, "bad")])
    sections = f"\\1-grams:\n{unigrams}\n\\2-grams:\n-0.2\t<s> bad\n-0.1\tbad </s>\n"
    arpa.write_text(f"\\data\\\nngram 1=4\nngram 2=2\n\n{sections}\n\\end\\\n")
    result = transcribe(speech, "--lm", str(arpa), "--lm-weight", "2")
    assert result.code == 0
    assert len(result.out.split()) < len(lines[0].split())  # every word but one is unknown to it


def test_the_text_grows_letter_by_letter_and_is_the_same() -> None:
    file = io.StringIO()
    shown = Plain(file, "talk.wav")
    words = [Word(text, 0.0, 0.1, 1.0) for text in ("good", "morning")]
    seen = []
    for event in ("g", "goo", words[0], "", "mor", "mor", words[1]):
        shown.partial(event) if isinstance(event, str) else shown.word(event)
        seen.append(file.getvalue().removeprefix("talk.wav: "))
    shown.end(Transcript("good morning", words, 1.0))
    assert seen == ["g", "goo", "good", "good", "good mor", "good mor", "good morning"]
    assert file.getvalue() == "talk.wav: good morning\n"


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stream", "--beam", "4"], "decodes greedily"),
        (["--stream", "--lm", "x.arpa"], "decodes greedily"),
        (["--nbest", "2", "--format", "srt"], "use text or json"),
        (["--format", "vtt", "another.wav"], "name a folder with --output"),
        (["--output", "out", "other/speech.flac"], "would both be written to"),
        (["--hotwords", "names.txt"], "there is no file names.txt"),
        (["--hotwords", "zebra"], "cannot be boosted"),
        (["--hotwords", "bad:nan"], "from 0 to 1000 nats, got nan"),
        (["--hotwords", "bad:inf"], "from 0 to 1000 nats, got inf"),
        (["--hotwords", "bad", "--hotword-weight", "1e300"], "from 0 to 1000 nats, got 1e+300"),
        (["--hotwords", "~no-such-user/a.txt"], "there is no file ~no-such-user/a.txt"),
        (["--beam", "1000000000"], "a beam keeps from 1 to 1000 hypotheses, got 1000000000"),
        (["--nbest", "1000000000"], "a beam keeps from 1 to 1000 hypotheses, got 1000000000"),
        (["--beam", "4", "--nbest", "5"], "a beam of 4 gives from 1 to 4 best hypotheses, got 5"),
        (["--lm", "x" * 5000], "there is no such file"),
        (["--threads", "100000"], "threads must be from 1 to 1024, got 100000"),
        (["--lm", "none.arpa"], "none.arpa"),
        (["--device", "abacus"], "there is no kind of device 'abacus'"),
        (["--device", "cuda:99"], "no device cuda:99"),
        (["--model", "nowhere"], "nowhere is no file or folder here"),
        (["--model", "x" * 5000], "can be no model's name: File name too long"),
        (["--model", "~no-such-user/a"], "'~no-such-user/a' can be no model's name"),
        (["--raw-rate", "12"], "sample rate of 12 Hz"),
        (["--raw-rate", "0"], "sample rate of 0 Hz"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    transcribe: Run, speech: str, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = transcribe(speech, *arguments)
    assert result.code == 2
    assert sentence in result.err
    assert re.fullmatch(r"error: [^\n]+\n", result.err)
    assert result.out == ""


def test_a_model_of_full_context_refuses_to_stream(run: Run, speech: str, tmp_path: Path) -> None:
    full = str(release(tmp_path / "full", ((-1, -1),), causal=False))
    assert run("transcribe", "--model", full, speech, "--decoder", "ctc").code == 0
    result = run("transcribe", "--model", full, speech, "--stream")
    assert result.code == 2
    assert "full context: it cannot stream" in result.err


def test_that_full_context_is_heard_in_windows_is_said(
    run: Run, speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcribing, "WINDOW_SECONDS", 0.5)
    both = str(release(tmp_path / "both", ((-1, -1), (4, 1))))
    words = ["transcribe", "--model", both, speech, "--decoder", "ctc"]
    assert "heard with full context, in windows, cut at pauses" in run(*words).err
    assert "windows" not in run(*words, "--latency-ms", "80").err


def test_without_a_model_of_its_own_it_says_what_to_do(
    run: Run, speech: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "DEFAULT", tmp_path / "none")
    result = run("transcribe", speech)
    assert result.code == 2
    assert "name one with --model" in result.err
    monkeypatch.setattr(hub, "DEFAULT", Path(model))
    assert run("transcribe", speech).code == 0


def test_a_developer_can_see_where_it_happened(transcribe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHKIT_DEBUG", "1")
    with pytest.raises(speechkit.errors.InputError):
        cli.main(["transcribe", "a.wav", "--nbest", "2", "--format", "srt"])


def test_ctrl_c_is_130(transcribe: Run, speech: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "load", interrupted)
    result = transcribe(speech)
    assert result.code == 130
    assert "Traceback" not in result.err


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_only(transcribe: Run, speech: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with_bar = transcribe(speech)
    assert "speech.wav" in terminal.getvalue()
    monkeypatch.undo()
    assert transcribe(speech) == with_bar._replace(err="")


# Doctor


def test_a_healthy_machine_is_0(run: Run) -> None:
    result = run("doctor")
    assert result.code == 0, result.out
    for part in ("torch ", "cpu", "[decode]", "tiny model", "default model", "everything that is needed works"):
        assert part in result.out


def test_something_broken_is_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def ill() -> object:
        raise RuntimeError("no\nluck")

    for check in ("packages", "machine", "extras", "voices", "folders", "models"):
        monkeypatch.setattr(doctor, check, lambda: iter(()))
    monkeypatch.setattr(doctor, "self_test", ill)
    result = run("doctor")
    assert result.code == 1
    assert re.search(r"BROKEN +ill +RuntimeError: no\n", result.out)
    assert "broken: 1" in result.out


def test_a_package_that_does_not_load_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", {"soxr": "soxr", "numpy": "numpy_that_is_not_there"})
    states = {finding.topic: finding.state for finding in doctor.packages()}
    assert (states["soxr"], states["numpy"]) == (doctor.GOOD, doctor.BROKEN)


def test_the_doctor_knows_every_extra_and_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~;]", line)[0].strip().lower() for line in lines}

    declared = {k: names(v) for k, v in project["optional-dependencies"].items() if k not in ("all", "dev", "peers")}
    assert {extra: set(found) for extra, found in doctor.EXTRAS.items()} == declared
    assert {*doctor.NEEDED, *doctor.PRESENT} <= names(project["dependencies"])


def test_a_cache_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPEECHKIT_CACHE", str(tmp_path / "file" / "cache"))
    states = {finding.topic: finding for finding in doctor.folders()}
    assert states["cache"].state == doctor.BROKEN
    assert "cannot be written" in states["cache"].what
