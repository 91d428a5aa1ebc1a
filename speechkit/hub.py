"""Models in and out: release folders, the Hugging Face hub, and the files that others published."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from speechkit import __version__
from speechkit.errors import InputError
from speechkit.files import beside, take_place
from speechkit.importers import archive, funasr, nemo, s3, wavtokenizer
from speechkit.onnx import META
from speechkit.release import API, Release, assemble
from speechkit.text import Tokenizer
from speechkit.tokenizers import TOKENIZER_FILES, load_tokenizer

CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "README.md"
FORMAT = 1
PUBLISHED = (".nemo", ".ckpt", ".onnx", ".pt", ".safetensors")  # files that others published
FETCHED = [  # what a model on the hub may consist of
    CONFIG, WEIGHTS, CARD, *TOKENIZER_FILES, "*.nemo", "*.ckpt", "*.yaml",
    "model.pt", "am.mvn", "config.json", "speech_tokenizer_v?.onnx", "speech_tokenizer_*.safetensors",
]  # fmt: skip
LARGEST_HALF = torch.finfo(torch.float16).max
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEFAULT = Path(__file__).parent / "models" / "asr"  # release folders that come with the package
CODEC = Path(__file__).parent / "models" / "codec"


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    compat: str | None = None,
    length_rule: str | None = None,
) -> Any:
    """A model ready for use, for recognition a `Transcriber`.

    Args:
        path: a release folder, a file of others (NeMo's `.nemo`), or a hub id such as ``org/name``; ``asr`` and
            ``codec``, where there is no such folder, and nothing for ``asr``, are what comes along (`default`).
        device: where it runs.
        compat: ``reference`` streams with the reference implementation's arithmetic, its inexactness included.
        length_rule: how frames are counted, ``floor`` or ``floor+1``; without it, as the model was trained.

    Raises:
        InputError: what is there cannot be used; the sentence says why.
    """
    if compat not in (None, "reference"):
        raise InputError(f"compat must be 'reference' or nothing, got {compat!r}")
    device = checked_device(str(device))
    folder = None if path is None else _export_folder(path)
    if folder is not None:
        return _load_export(folder, device, compat, length_rule)
    release = read(default() if path is None else path, length_rule)
    api = assemble(release, device)
    if compat is not None:
        if not hasattr(api.model, "compat"):
            raise InputError(f"{release.source} has no other arithmetic to be compatible with")
        api.model.compat = compat
    return api


def _export_folder(path: str | Path) -> Path | None:
    """The folder of an export, if that is what a path names."""
    try:
        folder = Path(path).expanduser()
        return folder if (folder / META).is_file() else None
    except (OSError, RuntimeError, ValueError):  # `read` says what is wrong with it
        return None


def _load_export(folder: Path, device: str, compat: str | None, length_rule: str | None) -> Any:
    if compat is not None or length_rule is not None:
        raise InputError(f"{folder} is an export, whose arithmetic is fixed: compat and length_rule mean nothing to it")
    provider = PROVIDERS.get(torch.device(device).type)
    if provider is None:
        raise InputError(f"{folder} is an export, which runs on cpu or cuda, not on {device}")
    from speechkit.onnx.read import read as read_export  # ONNX Runtime, which other models need not wait for

    return read_export(folder, torch.get_num_threads(), [provider])


def checked_device(name: str) -> str:
    """The name of a device that is there.

    Raises:
        InputError: there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no kind of device {name!r}: name cpu, cuda, cuda:1 or mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        found = [kind for kind, count in there.items() if count]
        raise InputError(f"this machine has no device {name}, only {', '.join(found)} (see `speechkit doctor`)")
    return name


def default(kind: str = "asr") -> Path:
    """The recogniser (``asr``) or the codec (``codec``) that comes with the package.

    Raises:
        InputError: this copy of speechkit has none.
    """
    folder, what, other, recipe = {
        "asr": (DEFAULT, "model", "a .nemo file", "librispeech_conformer"),
        "codec": (CODEC, "codec", "a published WavTokenizer .ckpt file", "libritts_wavtokenizer_residual"),
    }[kind]
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"no {what} comes with this copy of speechkit: name one with --model (a release folder, {other} or a hub "
            f"id), or train one with `speechkit train recipe={recipe}`"
        )
    return folder


def read(path: str | Path, length_rule: str | None = None) -> Release:
    """What a path or hub id holds, not built yet; see `load`."""
    if length_rule not in (None, "floor", "floor+1"):
        raise InputError(f"length_rule must be 'floor' or 'floor+1', got {length_rule!r}")
    if not str(path):
        raise InputError("a model needs a name, got an empty text")
    try:
        found = Path(path).expanduser()
        there = found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, in the home of nobody, with a character NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)[:60]!r} can be no model's name: {reason}") from None
    if not there:
        found = default(str(path)) if str(path) in ("asr", "codec") else pull(str(path))
    if found.is_file() and found.name in (CONFIG, WEIGHTS) and (found.parent / CONFIG).is_file():
        found = found.parent
    try:
        return _read_folder(found, length_rule) if found.is_dir() else _read_file(found, length_rule)
    except OSError as error:
        raise InputError(f"{found} cannot be read: {error.strerror or error}") from error


def _read_folder(folder: Path, length_rule: str | None) -> Release:
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return _read_release(folder, length_rule)
    published = [path for suffix in PUBLISHED for path in sorted(folder.glob(f"*{suffix}"))]
    if len(published) == 1:
        return _read_file(published[0], length_rule)
    if published:
        names = ", ".join(path.name for path in published[:5])
        raise InputError(f"{folder} holds {len(published)} models: name the file of one of them ({names})")
    if (folder / "release" / CONFIG).is_file():
        raise InputError(f"{folder} is a run, and its model lies in it: name {folder / 'release'}")
    here = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise InputError(
        f"{folder} is no model: it needs {CONFIG} and {WEIGHTS}, or one {', '.join(PUBLISHED)} file; it holds {here}"
    )


def _read_file(path: Path, length_rule: str | None) -> Release:
    if nemo.is_nemo(path):
        return nemo.read(path, length_rule)
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] in (b"PK", b"\x80\x02"):
        return _read_checkpoint(path)
    if path.suffix == ".onnx":
        return s3.read_onnx(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise InputError(f"{path} is no model that speechkit knows: give a release folder, a .nemo file or a hub id")


def _read_checkpoint(path: Path) -> Release:
    """A training program's checkpoint, if it is one whose model can be told from its tensors."""
    tensors = archive.read_state_dict(path.read_bytes(), str(path), strangers=True)
    if funasr.MARK in tensors:
        return funasr.read(tensors, path)
    if wavtokenizer.MARK in tensors:
        beside = sorted(path.parent.glob("*.yaml"))
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in beside]
        return wavtokenizer.read(tensors, str(path), texts)
    if s3.is_s3(tensors):
        return s3.read_named(tensors, path)
    raise InputError(f"{path} is a PyTorch checkpoint, which says nothing of its model: give the release folder")


def _read_safetensors(path: Path) -> Release:
    """Tensors of others, if it can be told from them what they are of."""
    tensors = _load_safetensors(path)
    if s3.is_s3(tensors):
        return s3.read_named(tensors, path)
    raise InputError(f"{path} says nothing of its model, as a {CONFIG} beside it would")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is no complete safetensors file ({error})") from error


def _read_release(folder: Path, length_rule: str | None) -> Release:
    source = str(folder)
    config = nemo.parse_yaml((folder / CONFIG).read_bytes(), str(folder / CONFIG))
    version = config.get("format", FORMAT)
    if version != FORMAT:
        raise InputError(
            f"{source} has format {version!r:.50}, this version of speechkit ({__version__}) reads {FORMAT}"
        )
    if length_rule is not None:
        model = config.get("model")
        front = model.get("front") if isinstance(model, dict) else None
        if not isinstance(front, dict):
            raise InputError(f"{source} has no front end that counts frames: length_rule means nothing to it")
        front["length_rule"] = length_rule
    tensors = _load_safetensors(folder / WEIGHTS)
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return Release(source, config, tensors, load_tokenizer(folder) if has_tokenizer else None)


def save(
    folder: str | Path,
    config: Mapping[str, Any],
    model: nn.Module,
    tokenizer: Tokenizer | None,
    card: str,
    half: bool = False,
) -> Path:
    """Writes a release folder: all of it or, where something fails, nothing; an earlier release there then survives.

    Args:
        folder: where; other files that lie in it stay.
        config: resolved; ``model`` rebuilds the model, ``api`` is the class that `load` returns around it.
        model: the network; single precision is kept unless `half`.
        tokenizer: of the model, or None.
        card: the model card, Markdown.
        half: stores half precision, at half the size.

    Returns:
        The folder.
    """
    folder = Path(folder).expanduser().absolute()
    with beside(folder) as fresh:
        try:
            written = {"format": FORMAT, "speechkit": __version__, "api": API, **config}
            text = yaml.dump(written, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)
            (fresh / CONFIG).write_text(text, encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save(fresh)
            (fresh / CARD).write_text(card, encoding="utf-8")
            _write_tensors(fresh / WEIGHTS, model, half)
            _replace(folder, fresh)
        except (OSError, InputError, safetensors.SafetensorError) as error:
            cause = error.__cause__ or error  # a sentence about a file in `fresh` names what is gone by then
            raise InputError(f"{folder} cannot be written: {getattr(cause, 'strerror', None) or cause}") from error
    return folder


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors: a list that is used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_tensors(path: Path, model: nn.Module, half: bool) -> None:
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu()
        if half and value.is_floating_point():
            if value.numel() and value.abs().max() > LARGEST_HALF:
                raise InputError(f"{name} does not fit into half precision: save without half=True")
            value = value.half()
        tensors[name] = value.contiguous()
    data = safetensors.torch.save(tensors, metadata={"format": "pt", "speechkit": __version__})
    with path.open("wb") as file:  # not save_file(), whose files nobody else may read
        file.write(data)
        os.fsync(file.fileno())


def _replace(folder: Path, fresh: Path) -> None:
    """Puts `fresh` in the place of `folder`, which keeps its other files."""
    old = take_place(folder, fresh)
    if old is None:
        return
    for entry in old.iterdir():
        if not (folder / entry.name).exists() and entry.name not in TOKENIZER_FILES:
            entry.rename(folder / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def pull(repo_id: str) -> Path:
    """Fetches a model from the Hugging Face hub (or finds it in the cache): the folder."""
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", repo_id):
        raise InputError(f"{repo_id} is no file or folder here, and no hub id (org/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=FETCHED))
    except Exception as error:  # the hub's client raises its own errors, httpx's, requests' and OSError
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{repo_id} is no file or folder here, and the hub did not give it: {reason}") from error


def push(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Publishes a release folder on the Hugging Face hub; the address. You must be logged in there."""
    folder = Path(folder).expanduser()
    assemble(_read_folder(folder, None))  # what cannot be loaded is not published
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=FETCHED))
    except Exception as error:  # as above
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{folder} could not be published as {repo_id}: {reason}") from error
