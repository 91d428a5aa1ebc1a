"""`speechkit doctor`: what this machine has and lacks, and whether a tiny model streams on it as it should."""

import importlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import typer

# distribution -> module: imported, because a package may be installed and yet not load
NEEDED = {
    "torch": "torch", "torchaudio": "torchaudio", "lightning": "lightning", "hydra-core": "hydra", "numpy": "numpy",
    "soundfile": "soundfile", "soxr": "soxr", "librosa": "librosa.filters", "sentencepiece": "sentencepiece",
    "safetensors": "safetensors", "huggingface_hub": "huggingface_hub", "jiwer": "jiwer",
}  # fmt: skip
PRESENT = ("onnxruntime", "onnx", "fastapi", "gradio")  # used by parts only: looked up, not imported
EXTRAS = {
    "mini": ("espeakng-loader",), "decode": ("flashlight-text",), "lhotse": ("lhotse",), "webdataset": ("webdataset",),
    "slurm": ("hydra-submitit-launcher",), "wandb": ("wandb",), "metrics": ("pystoi",), "pesq": ("pesq",),
    "vad": ("silero-vad",), "mic": ("sounddevice",), "opus": ("av",), "ray": ("ray",),
}  # fmt: skip

GOOD, LACKING, BROKEN = "ok", "--", "BROKEN"


class Finding(NamedTuple):
    """One line of the report."""

    topic: str
    state: str  # GOOD, LACKING (a choice) or BROKEN (needed)
    what: str


def doctor() -> None:
    """Say what this machine has and lacks.

    Exit code 1 where something that is needed is broken.
    """
    broken = 0
    for check in (packages, machine, extras, voices, folders, models, self_test):
        for finding in _found(check):
            print(f"{finding.state:6}  {finding.topic:16} {finding.what}", flush=True)
            broken += finding.state == BROKEN
    print("everything that is needed works" if not broken else f"broken: {broken}")
    if broken:
        raise typer.Exit(1)


def _found(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; its failure is a finding too."""
    try:
        yield from check()
    except Exception as error:  # a doctor must not fall ill
        yield Finding(check.__name__.replace("_", " "), BROKEN, _reason(error))


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def packages() -> Iterator[Finding]:
    """Python and what speechkit depends on."""
    supported = sys.version_info >= (3, 11)
    yield Finding("python", GOOD if supported else BROKEN, f"{platform.python_version()} on {platform.platform()}")
    for name, module in NEEDED.items():
        try:
            importlib.import_module(module)
            yield Finding(name, GOOD, metadata.version(name))
        except Exception as error:
            yield Finding(name, BROKEN, f"{_reason(error)}: pip install --force-reinstall {name}")
    for name in PRESENT:
        found = _version(name)
        yield Finding(name, GOOD if found else LACKING, found or f"pip install {name}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine() -> Iterator[Finding]:
    """Processors and accelerators."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "cpu", GOOD, f"{cores} cores for this process, {torch.get_num_threads()} threads of torch (--threads)"
    )
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield Finding(f"cuda:{i}", GOOD, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("mps", GOOD, "Apple GPU")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        yield Finding("gpu", LACKING, "none that torch can use")


def extras() -> Iterator[Finding]:
    """Optional packages."""
    for extra, names in EXTRAS.items():
        versions = {name: _version(name) for name in names}
        if all(versions.values()):
            yield Finding(f"[{extra}]", GOOD, ", ".join(f"{name} {version}" for name, version in versions.items()))
        else:
            yield Finding(f"[{extra}]", LACKING, f"pip install 'speechkit[{extra}]'")


def voices() -> Iterator[Finding]:
    """espeak-ng, for the embedded corpus."""
    if _version("espeakng-loader") is None:
        yield Finding("espeak voices", LACKING, "needs the extra mini")
        return
    from speechkit.data.espeak import Espeak

    with Espeak() as espeak:
        spoken = len(espeak.say("one two three", "en-us+f1")) / espeak.sample_rate
        count = f"{len(espeak.voices())} English voices of {len(espeak.accents())} accents"
    yield Finding("espeak voices", GOOD if spoken > 0.1 else BROKEN, f"{count}; {spoken:.1f} s spoken")


def folders() -> Iterator[Finding]:
    """Caches that must be writable."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from speechkit.data.mini import default_cache

    places = {"cache": default_cache(), "hub cache": Path(HF_HUB_CACHE), "temporary": Path(tempfile.gettempdir())}
    for name, folder in places.items():
        there = next(place for place in (folder, *folder.parents) if place.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                yield Finding(name, GOOD, f"{folder} can be written")
        except OSError as error:
            yield Finding(name, BROKEN, f"{folder} cannot be written: {error.strerror or error}")


def models() -> Iterator[Finding]:
    """The recogniser and the codec of the package."""
    from speechkit import hub
    from speechkit.errors import InputError

    for kind, name in (("asr", "default model"), ("codec", "default codec")):
        try:
            folder = hub.default(kind)
        except InputError as error:
            yield Finding(name, LACKING, str(error))
            continue
        begin = time.monotonic()
        model = hub.load(folder)
        size = sum(p.numel() for p in model.model.parameters()) / 1e6
        yield Finding(name, GOOD, f"{size:.1f} M parameters, loaded in {time.monotonic() - begin:.1f} s")


def self_test() -> Iterator[Finding]:
    """A tiny random recogniser: streamed sample by sample pieces against the whole, features and text."""
    import torch

    from speechkit.asr.conformer import ConformerEncoder
    from speechkit.asr.ctc import CtcHead
    from speechkit.asr.model import Recognizer
    from speechkit.asr.transcriber import Transcriber
    from speechkit.features import LogMel
    from speechkit.streaming.stream import Stream
    from speechkit.text import CharTokenizer

    begin = time.monotonic()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        encoder = ConformerEncoder(
            n_mels=16, dim=16, layers=2, heads=2, conv_kernel=3, subsampling_channels=8, contexts=[(4, 1)]
        )
        symbols = [" ", *"abcdefg"]
        model = Transcriber(Recognizer(LogMel(n_mels=16), encoder, CtcHead(16, len(symbols))), CharTokenizer(symbols))
        wave = 0.1 * torch.randn(16_000)
        pieces = wave.split(377)
        mel = model.network.front(wave[None], torch.tensor([len(wave)]))
        front, live = Stream(model.network.front), model.stream()
        streamed = torch.cat([y for piece in pieces for y in front.push(piece[:, None])] + front.flush())
        apart = float((streamed - mel[0][0, : int(mel[1])]).abs().max())
        yield Finding("front end", GOOD if apart < 1e-3 else BROKEN, f"stream and whole differ by {apart:.1e}")
        for piece in pieces:
            live.push(piece.numpy())
        same = live.finish().text == model.transcribe(wave).text
    seconds = time.monotonic() - begin
    yield Finding(
        "tiny model", GOOD if same else BROKEN,
        f"stream and whole give {'the same text' if same else 'different texts'}; self test took {seconds:.1f} s",
    )  # fmt: skip
