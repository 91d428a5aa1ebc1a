"""Release folders: what is saved comes back, and what cannot be used says why."""

import errno
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml

import speechkit
from speechkit import hub
from speechkit.asr.model import Recognizer
from speechkit.asr.nemo_stream import NemoStream
from speechkit.asr.transcriber import Transcriber
from speechkit.builder import target
from speechkit.errors import InputError
from speechkit.release import build
from speechkit.text import CharTokenizer, train_sentencepiece

SYMBOLS = [" ", *"abcdefgh"]


def configuration(**changes: Any) -> dict[str, Any]:
    model = {
        "_target_": "speechkit.asr.model.Recognizer",
        "front": {"_target_": "speechkit.features.LogMel", "n_mels": 16},
        "encoder": {
            "_target_": "speechkit.asr.conformer.ConformerEncoder", "n_mels": 16, "dim": 8, "layers": 1, "heads": 2,
            "conv_kernel": 3, "subsampling_channels": 4, "contexts": [[4, 1], [4, 0]],
        },
        "ctc": {"_target_": "speechkit.asr.ctc.CtcHead", "encoder_dim": 8, "vocab_size": len(SYMBOLS)},
    }  # fmt: skip
    return {"model": {**model, **changes}}


@pytest.fixture
def model() -> Recognizer:
    built: Recognizer = build(configuration()["model"])
    return built.eval()


@pytest.fixture
def folder(tmp_path: Path, model: Recognizer) -> Path:
    return hub.save(tmp_path / "release", configuration(), model, CharTokenizer(SYMBOLS), "# A model")


def edit(folder: Path, change: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_what_is_saved_comes_back(folder: Path, model: Recognizer) -> None:
    loaded = speechkit.load(folder)
    assert isinstance(loaded, Transcriber)
    assert not loaded.network.training
    assert loaded.tokenizer.pieces == SYMBOLS
    assert loaded.model.contexts == [(4, 1), (4, 0)]
    ours, theirs = loaded.network.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["release"]


def test_weights_of_another_kind_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: value.to(torch.int32) for name, value in tensors.items()}, path)
    with pytest.raises(InputError, match="hold numbers of another kind than the model"):
        speechkit.load(folder)


def test_a_device_that_is_not_there_is_said_in_a_sentence(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no kind of device 'abacus'"):
        speechkit.load(folder, device="abacus")
    with pytest.raises(InputError, match="this machine has no device cuda:99"):
        speechkit.load(folder, device="cuda:99")


def test_no_name_is_no_model() -> None:
    with pytest.raises(InputError, match="a model needs a name, got an empty text"):
        speechkit.load("")


@pytest.mark.parametrize("name", ["~no-such-user/a", "x" * 5000])
def test_what_can_be_no_name_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(InputError, match="can be no model's name"):
        speechkit.load(name)


@pytest.mark.parametrize("name", [".", "config.yaml", "model.safetensors"])
def test_a_release_is_named_by_its_folder_or_a_file_in_it(folder: Path, name: str) -> None:
    assert speechkit.load(str(folder / name)).tokenizer.pieces == SYMBOLS


def test_pieces_come_back(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(["bad egg", "a cab fed", "feed a hag"], tmp_path, 12, "bpe")
    config = configuration()
    config["model"]["ctc"]["vocab_size"] = tokenizer.vocab_size
    folder = hub.save(tmp_path / "release", config, build(config["model"]), tokenizer, "card")
    assert speechkit.load(folder).tokenizer.pieces == tokenizer.pieces


def test_half_precision_is_half_the_size(folder: Path, model: Recognizer, tmp_path: Path) -> None:
    half = hub.save(tmp_path / "half", configuration(), model, CharTokenizer(SYMBOLS), "card", half=True)
    sizes = [
        sum(t.nbytes for t in safetensors.torch.load_file(f / "model.safetensors").values()) for f in (folder, half)
    ]
    assert sizes[0] == 2 * sizes[1]
    loaded = speechkit.load(half).model
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_half_precision_that_would_overflow_is_refused(tmp_path: Path, model: Recognizer) -> None:
    model.encoder.subsampling.out.bias.data[0] = 1e6
    with pytest.raises(InputError, match=r"subsampling\.out\.bias does not fit into half precision"):
        hub.save(tmp_path / "half", configuration(), model, None, "card", half=True)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["ctc.out.bias"][0] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="NaN or Inf: ctc.out.bias"):
        speechkit.load(folder)


def test_the_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    CharTokenizer(SYMBOLS[:3]).save(folder)
    with pytest.raises(InputError, match="tokenizer of .* has 3 pieces, .* do not belong together"):
        speechkit.load(folder)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("front", None, "needs front to be .*LogMel, got None"),
        ("front.mean", None, "needs mean to be float, got None"),
        ("front.mean", 10**400, "mean is a whole number of more than 63 bits"),
        ("front.mean", 1e300, "mean must be from -100 to 100"),
        ("front.deviation", NAN, "needs deviation to be float, got nan"),
        ("front.preemphasis", [1], r"needs preemphasis to be float, got \[1\]"),
        ("front.stride_ms", 1e300, "the stride in samples must be from 1 to 512"),
        ("front.stride_ms", -1, "the stride in samples"),
        ("front.window_ms", 0, "the window in samples"),
        ("front.sample_rate", 0, "the window in samples"),
        ("front.n_mels", 10**7, "n_mels must be from 1 to 1024"),
        ("front.n_mels", 3, "number of mel bands .* is 3 here and 16 there"),
        ("encoder.dropout", NAN, "needs dropout to be float, got nan"),
        ("encoder.attention_dropout", -1, "attention's dropout must be from 0 to 1, got -1"),
        ("encoder.contexts", [[10**30, 0]], "contexts is a whole number of more than 63 bits"),
        ("encoder.contexts", [[1 << 40, 0]], r"up to 100000, -1 for no limit, got \[1099511627776, 0\]"),
        ("encoder.contexts", [[4]], r"contexts must be pairs of left and right, got \[\[4\]\]"),
        ("encoder.contexts", [[4.5, 1]], r"needs contexts to be Sequence\[Sequence\[int\]\]"),
        ("encoder.contexts", [], "at least one attention context"),
        ("encoder.context_weights", [0, 0], "context_weights must not be negative, nor all zero"),
        ("encoder.conv_kernel", 0, "kernel must be at least 1, got 0"),
        ("encoder.dim", 10**30, "dim is a whole number of more than 63 bits"),
        ("encoder.dim", 1 << 61, "cannot be built"),
        ("encoder.dim", 8.5, "needs dim to be int, got 8.5"),
        ("encoder.dim", 0, "must be at least 1"),
        ("encoder.heads", 0, "dim must be a multiple of heads, got 8 and 0"),
        ("encoder.heads", True, "needs heads to be int, got True"),
        ("encoder.layers", 10**30, "layers is a whole number"),
        ("encoder.layers", -1, "1 to 1000 layers, got -1"),
        ("encoder.bias", "no", "needs bias to be bool, got 'no'"),
        ("ctc.vocab_size", 0, "encoder_dim and vocab_size must be at least 1, got"),
        ("ctc.vocab_size", INF, "needs vocab_size to be int, got inf"),
        ("ctc", {"_target_": "speechkit.features.LogMel"}, "needs ctc to be .*CtcHead | None, got LogMel"),
    ],
)
def test_odd_values_are_named_in_one_sentence(folder: Path, place: str, value: object, said: str) -> None:
    *path, last = place.split(".")
    edit(folder, lambda config: (config["model"][path[0]] if path else config["model"]).update({last: value}))
    with pytest.raises(InputError, match=said) as caught:
        speechkit.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "a: 2001-99-99",
        "a: !!float x",
        "a: !!bool x",
        "a: !!int ''",
        "[" * 100_000,
        f"a: 0x{'f' * 5000}",
        f"? 0x{'f' * 5000}",
    ],
)
def test_odd_yaml_is_refused_in_one_sentence(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"config\.yaml (is no YAML|cannot be used: .* of more than 63 bits)"
    ) as caught:
        speechkit.load(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_lists_within_lists_without_end_are_refused(folder: Path) -> None:
    steps = "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 600))
    (folder / "config.yaml").write_text("a0: &a0 [1]\n" + steps + "model: {x: *a599}\n")
    with pytest.raises(InputError, match="unfolds to more than 1000000 values or 100 levels"):
        speechkit.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("characters.json", "[" * 100_000, "is not a list of characters in JSON"),
        ("characters.json", '["a", "bc"]', "needs different single characters, got"),
        ("tokenizer.model", "", "is not a SentencePiece model, but empty"),
    ],
)
def test_a_tokenizer_that_is_none_is_named(folder: Path, name: str, content: str, said: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        speechkit.load(folder)
    assert str(folder / name) in str(caught.value)


def test_lists_that_are_used_twice_are_written_twice(tmp_path: Path, model: Recognizer) -> None:
    config = configuration()
    config["again"] = config["model"]
    folder = hub.save(tmp_path / "release", config, model, None, "card")
    assert "*id" not in (folder / "config.yaml").read_text()


# Saving that fails


@pytest.mark.parametrize("owner", ["tensors", "rename"])
def test_an_earlier_release_survives_a_full_disk(
    folder: Path, model: Recognizer, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")

    def fsync(file: int) -> None:
        raise full

    rename = Path.rename

    def broken(self: Path, to: Path) -> Path:
        if to == folder and not self.name.endswith(".old"):
            raise full
        return rename(self, to)

    with monkeypatch.context() as patch:
        if owner == "tensors":
            patch.setattr("os.fsync", fsync)
        else:
            patch.setattr(Path, "rename", broken)
        model.encoder.subsampling.out.bias.data += 1
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            hub.save(folder, configuration(), model, CharTokenizer(SYMBOLS), "new")
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["release"]


def test_a_release_replaces_an_earlier_one_and_keeps_other_files(
    folder: Path, model: Recognizer, tmp_path: Path
) -> None:
    (folder / "notes.txt").write_text("mine")
    model.encoder.subsampling.out.bias.data += 1
    tokenizer = train_sentencepiece(["bad egg", "a cab fed"], tmp_path / "pieces", 9, "bpe")
    hub.save(folder, configuration(), model, tokenizer, "# Another")
    loaded = speechkit.load(folder)
    assert torch.equal(loaded.model.encoder.subsampling.out.bias, model.encoder.subsampling.out.bias)
    assert loaded.tokenizer.pieces == tokenizer.pieces
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "README.md").read_text() == "# Another"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, model: Recognizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/release cannot be written"):
        hub.save(tmp_path / "file" / "release", configuration(), model, None, "card")


# Releases that cannot be used


@pytest.mark.parametrize("part", [0, 4, 60, 3000])
def test_truncated_weights_are_refused(folder: Path, part: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(InputError, match=r"model\.safetensors is no complete safetensors file"):
        speechkit.load(folder)


def test_weights_of_another_model_are_named(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["surprise"] = tensors.pop("ctc.out.bias")
    tensors["ctc.out.weight"] = torch.zeros(3, 3)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        speechkit.load(folder)
    for part in ("lack ctc.out.bias", "have unknown surprise", "ctc.out.weight of shape (3, 3), not (10, 8)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "subprocess.Popen", "speechkit.audio.os.system", "speechkit.hub.push", "speechkit.text.io.open",
        "speechkit.asr.ctc.ctc_loss", "speechkit.asr.ctc.Tensor", "speechkit.asr.nowhere.Thing", "speechkit",
        "speechkit.data.corpus.Corpus", "speechkit.train.main", "", None, 7,
    ],
)  # fmt: skip
def test_a_configuration_cannot_run_code(folder: Path, name: Any) -> None:
    with pytest.raises(InputError, match=r"_target_|this version of speechkit has no"):
        target(name)
    edit(folder, lambda config: config["model"]["ctc"].update(_target_=name))
    with pytest.raises(InputError):
        speechkit.load(folder)


def test_absurd_sizes_cost_no_memory(folder: Path) -> None:
    edit(folder, lambda config: config["model"]["ctc"].update(vocab_size=1 << 44))
    with pytest.raises(InputError, match=r"have ctc\.out\.weight of shape"):
        speechkit.load(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["model"]["encoder"].update(style="sideways"), "attention style must be one of"),
        (lambda c: c["model"]["encoder"].update(surprise=1), "cannot be built.*surprise"),
        (lambda c: c["model"]["encoder"].pop("_target_"), "needs encoder to be .*ConformerEncoder, got {"),
        (lambda c: c.pop("model"), "has no section `model`"),
        (lambda c: c.update(model=3), "has no section `model`"),
        (lambda c: c.update(format=99), "has format 99, this version of speechkit"),
        (lambda c: c.update(api="os.system"), "may only build classes of speechkit's models"),
    ],
)
def test_configurations_that_describe_no_model_are_refused(folder: Path, change: Any, sentence: str) -> None:
    edit(folder, change)
    with pytest.raises(InputError, match=sentence):
        speechkit.load(folder)


def test_a_release_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "characters.json").unlink()
    with pytest.raises(InputError, match="holds no tokenizer, without which"):
        speechkit.load(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no model that speechkit knows"),
        (b"RIFF....WAVE", "is no model that speechkit knows"),
        (b"PK\x03\x04rest", "is no complete PyTorch file"),
        (b"\x80\x02rest", "is no complete PyTorch file"),
        (b"\x1f\x8bnothing", "is not a complete archive"),
    ],
)
def test_files_that_are_no_model_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "model.nemo").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        speechkit.load(tmp_path / "model.nemo")


def test_folders_that_are_no_model_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it holds nothing"):
        speechkit.load(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"it holds notes\.txt"):
        speechkit.load(tmp_path)


# Options


def test_a_run_says_where_its_model_lies(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(folder, tmp_path / "run" / "release")
    with pytest.raises(InputError, match=r"is a run, and its model lies in it: name .*release"):
        speechkit.load(tmp_path / "run")


def test_reference_arithmetic_is_a_choice(folder: Path) -> None:
    exact, reference = speechkit.load(folder), speechkit.load(folder, compat="reference")
    assert isinstance(reference.model.streaming((4, 0)).modules[1], NemoStream)
    assert not any(isinstance(module, NemoStream) for module in exact.model.streaming((4, 0)).modules)
    with pytest.raises(InputError, match="compat must be 'reference' or nothing, got 'nemo'"):
        speechkit.load(folder, compat="nemo")


def test_frames_are_counted_as_asked(folder: Path) -> None:
    assert speechkit.load(folder).model.front.extra_frames == 0
    assert speechkit.load(folder, length_rule="floor+1").model.front.extra_frames == 1
    with pytest.raises(InputError, match="length_rule must be 'floor' or"):
        speechkit.load(folder, length_rule="ceil")
    edit(folder, lambda config: config.update(model=3))
    with pytest.raises(InputError, match="has no front end that counts frames"):
        speechkit.load(folder, length_rule="floor")


# The hub


def test_a_model_on_the_hub_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert speechkit.load("somebody/a-model").tokenizer.pieces == SYMBOLS
    assert asked[0][0] == "somebody/a-model"
    assert not any("*.bin" in pattern or pattern == "*" for pattern in asked[0][1])


def test_without_a_network_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route to host\nmany more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError) as caught:
        speechkit.load("somebody/a-model")
    assert str(caught.value) == (
        "somebody/a-model is no file or folder here, and the hub did not give it: no route to host"
    )


@pytest.mark.parametrize("name", ["model.nemo", "/nowhere/model", "a/b/c", "../up"])
def test_what_is_neither_here_nor_on_the_hub_is_named(name: str) -> None:
    with pytest.raises(InputError, match="is no file or folder here, and no hub id"):
        speechkit.load(name)


def test_only_what_loads_is_published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create", repo_id))

        def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> str:
            calls.append(("upload", repo_id))
            return f"https://hub.example/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert hub.push(folder, "me/mine") == "https://hub.example/me/mine"
    assert calls == [("create", "me/mine"), ("upload", "me/mine")]
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="no complete safetensors file"):
        hub.push(folder, "me/mine")
    assert len(calls) == 2
