"""Training of S3 tokenizers: they learn by what is recognised behind them, resume, and are released without that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

import speechkit
from speechkit import audio
from speechkit.builder import build
from speechkit.codecs.quantizers import FiniteScalarQuantizer
from speechkit.codecs.s3 import SpeechTokenizer, TokenModel
from speechkit.codecs.supervision.job import TokenJob
from speechkit.codecs.supervision.listener import Listener
from speechkit.codecs.supervision.scoring import score
from speechkit.codecs.supervision.task import TokenTask
from speechkit.codecs.supervision.writer import Writer
from speechkit.data.augment import Augmenter
from speechkit.data.collate import Batch, Item, collate
from speechkit.data.module import SpeechDataModule
from speechkit.errors import InputError
from speechkit.nn.specaugment import SpecAugment
from speechkit.schedule import WarmupCosine
from speechkit.text import CharTokenizer

RATE, DIM = 16_000, 32
WORDS = ("ab", "ba", "cab", "abba", "ac")
PITCH = {"a": 300.0, "b": 700.0, "c": 1500.0, " ": 0.0}
TEXT = CharTokenizer("abc ")
AT = "speechkit.codecs."
QUANTIZERS: dict[str, dict[str, Any]] = {
    "fsq": {"_target_": AT + "quantizers.FiniteScalarQuantizer", "dim": DIM, "levels": [3] * 4},
    "vq": {
        "_target_": AT + "quantizers.VectorQuantizer",
        "normalize": True,
        "codebook": {"_target_": AT + "codebook.Codebook", "size": 24, "dim": DIM, "threshold": 0.2},
    },
}
KINDS = (*QUANTIZERS, "causal")
each = pytest.mark.parametrize("kind", KINDS)


def config(kind: str) -> dict[str, Any]:
    encoder = {"_target_": AT + "s3_layers.S3Encoder", "mels": 20, "dim": DIM, "heads": 2, "layers": 2, "memory": 5}
    if kind != "causal":
        return {"_target_": AT + "s3.S3Tokenizer", "encoder": encoder, "quantizer": QUANTIZERS[kind]}
    encoder |= {"_target_": AT + "s3_causal_layers.CausalS3Encoder", "context": [8, 3]}
    return {"_target_": AT + "s3_causal.CausalS3Tokenizer", "encoder": encoder, "quantizer": QUANTIZERS["fsq"]}


def said(text: str, seed: int) -> Item:
    """A tone for each letter, 0.12 s long."""
    generator = torch.Generator().manual_seed(seed)
    count = int(0.12 * RATE)
    time = torch.arange(count) / RATE
    tones = [torch.sin(2 * torch.pi * PITCH[letter] * time) for letter in text]
    wave = 0.3 * torch.cat(tones) + 0.003 * torch.randn(count * len(text), generator=generator)
    return Item(wave.numpy(), TEXT.encode(text), f"{text}-{seed}", text)


def batch(index: int, rows: int = 4) -> Batch:
    """Texts of one to three words."""
    generator = torch.Generator().manual_seed(index)
    drawn = [torch.randint(len(WORDS), (1 + i % 3,), generator=generator).tolist() for i in range(rows)]
    return collate([said(" ".join(WORDS[i] for i in words), 10 * index) for words in drawn])


class Batches(torch.utils.data.Dataset[Batch]):
    """So many batches, or one of them again and again."""

    def __init__(self, count: int, one: bool = False) -> None:
        self.made = [batch(0)] * count if one else [batch(i) for i in range(count)]

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> Batch:
        return self.made[index]


def loader(count: int, one: bool = False) -> DataLoader[Batch]:
    return DataLoader(Batches(count, one), batch_size=None)


def listener(**changes: Any) -> Listener:
    return Listener(**{"dim": DIM, "vocab_size": 4, "heads": 2, "layers": 1, "memory": 5, "dropout": 0.0, **changes})


def task(kind: str, **changes: Any) -> TokenTask:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "listener": listener(writer_layers=1),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, 3e-3),
        "scheduler": lambda optimizer: WarmupCosine(optimizer, 200, 0),
        "ctc_weight": 0.5,
        "attention_weight": 0.5,
    }
    return TokenTask(build(config(kind)), tokenizer=TEXT, **{**arguments, **changes})


def trainer(steps: int, *callbacks: Callback, **changes: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **{"enable_checkpointing": bool(callbacks), **changes},
    )  # fmt: skip


class Curve(Callback):
    """What was logged after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fitted(kind: str, steps: int, one: bool = False, **changes: Any) -> tuple[TokenTask, list[dict[str, float]]]:
    curve, made = Curve(), task(kind, **changes)
    trainer(steps, curve, enable_checkpointing=False).fit(made, loader(steps, one))
    return made, curve.steps


@each
def test_on_one_batch_both_ways_to_text_learn_it_through_tokens(kind: str) -> None:
    made, curve = fitted(kind, 80, one=True)
    for losses in curve:
        assert losses.keys() >= {"train/loss", "train/ctc", "train/attention", "train/quantizer"}
        assert all(torch.tensor(value).isfinite() for value in losses.values())
    assert curve[-1]["train/ctc"] < 0.2 * curve[0]["train/ctc"]
    assert curve[-1]["train/attention"] < 0.6 * curve[0]["train/attention"]
    heard = batch(0)
    waves = [row[:count] for row, count in zip(heard.wave, heard.wave_lengths.tolist(), strict=True)]
    model, ear = made.model.eval(), made.listener.eval()
    found = score(model, ear, TEXT.decode, "one", waves, heard.texts)
    assert {s.decoder: s.wer < 0.3 for s in found} == {"ctc": True, "attention": True}
    assert found[0].words == sum(len(text.split()) for text in heard.texts)
    assert found[0].codes == sum(-(-(len(wave) // 160) // 4) for wave in waves)
    assert found[0].bits_per_second == pytest.approx(25 * torch.tensor(float(model.size)).log2().item())
    assert 1 <= found[0].perplexity <= found[0].utilization * model.size + 1e-6


@each
@torch.no_grad()
def test_padding_changes_neither_codes_nor_losses(kind: str) -> None:
    made = task(kind).double().eval()
    for part in (p for p in made.model.encoder.stem.modules() if isinstance(p, torch.nn.Conv1d)):
        part.weight.normal_(std=0.5)
    items = [said(text, 1) for text in ("ab", "abba cab ba", "c")]
    together = collate(items)._replace(wave=collate(items).wave.double())
    tokens, counts = made.quantized(together)
    found = made.losses(together, made.listener(tokens.values, counts), counts, tokens.loss)
    assert len(tokens.codes.unique()) > 3
    alone = []
    for row, item in enumerate(items):
        one = collate([item])._replace(wave=collate([item]).wave.double())
        own, count = made.quantized(one)
        assert own.codes[0, : int(count)].tolist() == tokens.codes[row, : int(count)].tolist()
        alone.append(made.losses(one, made.listener(own.values, count), count, own.loss))
    for name in ("ctc", "attention"):
        torch.testing.assert_close(found[name], torch.stack([losses[name] for losses in alone]).mean())


@each
def test_every_weight_of_both_halves_learns(kind: str) -> None:
    made = task(kind).train()
    heard = batch(1)
    tokens, counts = made.quantized(heard)
    made.losses(heard, made.listener(tokens.values, counts), counts, tokens.loss)["loss"].backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_one_way_to_text_is_enough() -> None:
    for ear, parts in ((listener(), {"ctc"}), (listener(ctc=False, writer_layers=1), {"attention"})):
        _, curve = fitted("fsq", 2, listener=ear, ctc_weight=1.0, attention_weight=1.0)
        assert {name.removeprefix("train/") for name in curve[0]} == {"loss", "quantizer", *parts}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"listener": listener(dim=16)}, "the listener is 16 wide, but the tokens' vectors are 32"),
        ({"listener": listener(), "ctc_weight": 0.0}, "no weight is left for what the listener has: ctc"),
    ],
)
def test_halves_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        task("fsq", **changes)


def test_a_listener_without_a_way_to_text_is_refused() -> None:
    with pytest.raises(ValueError, match="a CTC head, a decoder that writes, or both"):
        listener(ctc=False)
    with pytest.raises(InputError, match="has the decoders ctc, not attention"):
        listener().decode("attention", torch.zeros(1, 1, DIM), torch.tensor([1]))


@pytest.fixture
def speech(tmp_path: Path) -> Callable[[], SpeechDataModule]:
    """Two utterances a batch, of five."""
    lines = []
    for i, word in enumerate(WORDS):
        item = said(f"{word} {word}", i)
        audio.write(tmp_path / f"{i}.wav", item.wave, RATE)
        lines.append(json.dumps({"id": item.id, "path": f"{i}.wav", "text": item.text}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))

    def made() -> SpeechDataModule:
        data = SpeechDataModule(
            str(tmp_path), [str(tmp_path / "train.jsonl")], [], [], batch_seconds=2.5, rate=RATE, seed=1,
            transform=Augmenter(),
        )  # fmt: skip
        data.tokenizer = TEXT
        return data

    return made


@pytest.mark.parametrize("stop", [2, 4])
@each
def test_a_resumed_run_ends_as_an_unbroken_one(
    kind: str, stop: int, speech: Callable[[], SpeechDataModule], tmp_path: Path
) -> None:
    """In the first and the second epoch; what SpecAugment draws, the flat start and a codebook's averages go on."""
    changes: dict[str, Any] = {"flat_start": 4, "quantization_start": 1, "spec_augment": SpecAugment(freq_width=5)}
    whole = task(kind, **changes)
    trainer(5, enable_checkpointing=False).fit(whole, datamodule=speech())
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(stop, saver).fit(task(kind, **changes), datamodule=speech())
    later = task(kind, **changes)
    rest = trainer(5, enable_checkpointing=False)
    rest.fit(later, datamodule=speech(), ckpt_path=tmp_path / f"step={stop}.ckpt", weights_only=True)
    assert rest.global_step == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(later.state_dict()[name], value), name


def test_validation_says_errors_and_use_of_codes() -> None:
    made, _ = fitted("fsq", 3)
    metrics = trainer(1, enable_checkpointing=False).validate(made, loader(2), verbose=False)[0]
    rates = {f"{kind}{head}" for kind in ("wer", "cer") for head in ("", "_ctc", "_attention")}
    expected = {"loss", "utilization", "perplexity", *rates}
    assert {name.removeprefix("val/") for name in metrics} == expected
    codes = []
    for heard in (batch(0), batch(1)):
        values, counts = made.model.eval().encode(heard.wave, heard.wave_lengths)
        codes += [row[:count] for row, count in zip(values, counts.tolist(), strict=True)]
    shares = torch.bincount(torch.cat(codes), minlength=81) / sum(map(len, codes))
    assert metrics["val/utilization"] == pytest.approx(float((shares > 0).float().mean()))
    assert metrics["val/perplexity"] == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-4)


@pytest.fixture(params=KINDS)
def trained(request: pytest.FixtureRequest) -> tuple[str, TokenTask]:
    return request.param, fitted(request.param, 4)[0]


def test_a_release_has_the_codes_of_what_was_trained_and_the_way_back(
    trained: tuple[str, TokenTask], tmp_path: Path
) -> None:
    kind, made = trained
    model = made.model.eval()
    job = TokenJob(lambda vocab_size: made.listener)
    job.tokenizer = TEXT
    heard = batch(7)
    found = score(model, job.listener.eval(), TEXT.decode, "some", [heard.wave[0]], heard.texts[:1])
    job.release(tmp_path / "release", {"name": "tiny", "model": config(kind)}, model, found)
    tokenizer = speechkit.load(tmp_path / "release")
    assert isinstance(tokenizer, SpeechTokenizer)
    codes, counts = tokenizer.encode(heard.wave, heard.wave_lengths)
    expected, lengths = model.encode(heard.wave, heard.wave_lengths)
    assert torch.equal(codes, expected)
    assert torch.equal(counts, lengths)
    torch.testing.assert_close(tokenizer.model.quantizer.decode(codes), model.quantizer.decode(codes))
    assert not [name for name in tokenizer.model.state_dict() if not name.startswith(("encoder.", "quantizer."))]
    card = (tmp_path / "release" / "README.md").read_text()
    assert f"25 tokens a second, each one of {model.size}" in card
    assert "| some | " in card
    assert job.table(found).row_count == 2
    assert json.dumps([s.as_dict() for s in found])


def test_a_release_can_be_trained_on(trained: tuple[str, TokenTask], tmp_path: Path) -> None:
    """As with ``init=``: another listener hears the same tokens."""
    kind, made = trained
    job = TokenJob(lambda vocab_size: made.listener)
    job.release(tmp_path / "release", {"name": "tiny", "model": config(kind)}, made.model, [])
    model = speechkit.load(tmp_path / "release").model
    assert isinstance(model, TokenModel)
    codes, _ = model.encode(batch(3).wave, batch(3).wave_lengths)
    again = task(kind)
    made_again: Callable[..., TokenTask] = TokenTask
    fresh = made_again(model.train(), again.listener, TEXT, again.make_optimizer)
    trainer(1, enable_checkpointing=False).fit(fresh, loader(1))
    assert not torch.equal(fresh.model.eval().encode(batch(3).wave, batch(3).wave_lengths)[0], codes) or kind != "vq"
    assert all(value.isfinite().all() for value in fresh.state_dict().values())


def test_a_writer_sees_no_later_token_and_no_padding() -> None:
    torch.manual_seed(0)
    writer = Writer(8, 5, 2, 2).double().eval()
    heard, tokens = torch.randn(2, 6, 8, dtype=torch.double), torch.tensor([[1, 2, 3, 4], [4, 0, 2, 0]])
    lengths = torch.tensor([6, 4])
    scores = writer(heard, lengths, tokens)
    changed = tokens.clone()
    changed[:, 2:] = 0
    torch.testing.assert_close(writer(heard, lengths, changed)[:, :2], scores[:, :2])
    noisy = heard.clone()
    noisy[1, 4:] = 9.0
    torch.testing.assert_close(writer(noisy, lengths, tokens), scores)
    each = writer.losses(heard, lengths, tokens, torch.tensor([4, 2]), 0.1)
    alone = writer.losses(heard[1:], lengths[1:], tokens[1:, :2], torch.tensor([2]), 0.1)
    torch.testing.assert_close(each[1:], alone, check_dtype=False)


def test_greedy_writing_ends() -> None:
    torch.manual_seed(0)
    writer = Writer(8, 5, 2, 1).eval()
    heard = torch.randn(3, 6, 8)

    def rows(bias: float) -> list[list[int]]:
        with torch.no_grad():
            writer.out.bias[5] = bias
        return writer.greedy(heard, torch.tensor([6, 2, 1]))

    assert rows(-100.0) != [[], [], []]
    assert [len(row) for row in rows(-100.0)] == [6, 2, 1]
    assert rows(100.0) == [[], [], []]


def test_the_gradient_of_a_code_is_that_of_what_was_not_rounded() -> None:
    torch.manual_seed(0)
    quantizer = build(QUANTIZERS["fsq"]).train()
    x = torch.randn(1, 5, DIM, requires_grad=True)
    weight = torch.randn(1, 5, DIM)
    (quantizer(x).values * weight).sum().backward()
    rounded: Tensor | None = x.grad
    y = x.detach().clone().requires_grad_()
    (quantizer.project_up(quantizer.bounded(y)) * weight).sum().backward()
    assert rounded is not None
    assert y.grad is not None
    torch.testing.assert_close(rounded, y.grad)


def test_numbers_that_use_their_levels_evenly_have_the_least_loss() -> None:
    quantizer = FiniteScalarQuantizer(4, [3, 5, 4]).double()
    valid = torch.ones(1, 6000, dtype=torch.bool)
    levels = [torch.arange(6000) % level for level in quantizer.levels]
    even = torch.stack(
        [0.9 * (2 * digit / (level - 1) - 1) for digit, level in zip(levels, (3, 5, 4), strict=True)], -1
    )
    numbers = (even * quantizer.reach - quantizer.even)[None].double()
    assert quantizer.spread(numbers, valid) < 1e-3
    for worse in (numbers * 0.1, numbers.abs(), torch.zeros_like(numbers)):
        assert quantizer.spread(worse, valid) > 0.05
    behind = torch.cat([numbers, torch.full_like(numbers, 0.5)], dim=1)
    torch.testing.assert_close(
        quantizer.spread(behind, torch.cat([valid, ~valid], dim=1)), quantizer.spread(numbers, valid)
    )


def test_saturated_numbers_come_back() -> None:
    """Their loss has a gradient where what follows has none."""
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(8, [3, 3])
    with torch.no_grad():
        quantizer.project_down.bias.fill_(3.0)
    x = torch.randn(1, 500, 8)
    assert quantizer.encode(x).unique().tolist() == [8]
    optimizer = torch.optim.AdamW(quantizer.parameters(), 0.05)
    for _ in range(150):
        loss = quantizer(x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(quantizer.encode(x).unique()) == 9
