"""A Paraformer as a folder of ONNX graphs: whole utterances in one, each grid in two, and `meta.json` for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speechkit.asr.blocks import WHOLE
from speechkit.asr.decoding.nar_scores import BlockScores, WholeScores
from speechkit.asr.paraformer import Paraformer
from speechkit.asr.seaco import SeacoParaformer
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.onnx import WEIGHTS
from speechkit.onnx.check import Parity
from speechkit.onnx.folder import described, write_meta
from speechkit.onnx.front import front_dim, front_meta
from speechkit.onnx.parity import chained, check_counts, compared
from speechkit.onnx.release import RecognizerExport
from speechkit.streaming.export import EXAMPLE_ROWS, export_function, export_stream, share_weights
from speechkit.streaming.state import Chunk

EXAMPLE_STEPS = 11
FEATURES, SCORES = ["features", "lengths"], ["scores", "counts"]


class Whole(nn.Module):
    """Features of whole utterances to the step and the log-probabilities of every token."""

    def __init__(self, model: Paraformer) -> None:
        super().__init__()
        self.encoder, self.scores = model.encoder, WholeScores(model.predictor, model.decoder)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, in_dim), (batch,) -> (batch, tokens, 1 + vocabulary), (batch,)."""
        steps, counts = self.encoder(features, lengths)
        found: tuple[Tensor, Tensor] = self.scores(steps, counts)
        return found


class ParaformerExport(RecognizerExport):
    """A Paraformer; arguments as of `RecognizerExport`, but graphs of whole utterances take features always."""

    relative = 3e-5  # what an encoder gives has no scale
    keep: ClassVar[Sequence[str]] = (".mel", ".shift", ".scale")

    def write(self, folder: Path) -> None:
        """As `Export.write`."""
        write(self.transcriber, folder, self.contexts, self.front)

    def reduced(self, meta: Mapping[str, Any]) -> Sequence[str]:
        """All graphs."""
        return [name for entry in meta["contexts"] for name in (entry["file"], entry.get("scores_file")) if name]

    @torch.inference_mode()
    def parity(self, exported: Transcriber) -> list[Parity]:
        """Whole utterances with silence among them, and chained calls of every grid."""
        torch.manual_seed(0)
        ours: Any = self.transcriber.model
        theirs: Any = exported.model
        found = []
        exact = theirs.meta["precision"] != "int8"
        for grid in theirs.contexts:
            if grid.whole:
                found.append(_whole_parity(ours, theirs, exact))
                continue
            found.append(compared(grid[:2], "encoder", chained(ours.streaming(grid), theirs.streaming(grid))))
            one, other = (model.greedy("nar", grid).scores for model in (ours, theirs))
            found.append(compared(grid[:2], "scores", _chained_blocks(ours.streaming(grid), one, other, exact)))
        return found


@torch.inference_mode()
def _whole_parity(ours: Any, theirs: Any, exact: bool) -> Parity:
    wave = 0.1 * torch.randn(3, ours.rate)
    wave[1, ours.rate // 2 :] = 0
    lengths = torch.tensor([ours.rate, ours.rate // 2, 3])
    pairs = []
    for rows in ([0, 1, 2], [2]):  # alone, the last one has no features and no tokens
        given = wave[rows, : int(lengths[rows].max())], lengths[rows], WHOLE
        one, other = (model.greedy("nar", WHOLE).scores(*model.encode(*given)) for model in (ours, theirs))
        counts = _common(one[1], other[1], exact)
        pairs += [(a[:n], b[:n]) for a, b, n in zip(one[0], other[0], counts, strict=True)]
    return compared(None, "whole", pairs)


@torch.inference_mode()
def _chained_blocks(stream: Any, ours: Any, theirs: Any, exact: bool, calls: int = 20) -> list[tuple[Tensor, Tensor]]:
    """Scores of the blocks that chained calls of one stream give, in both."""
    state, states, pairs = stream.init_state(2), [ours.init_state(2), theirs.init_state(2)], []
    for call in range(calls):
        lengths = torch.tensor([stream.chunk, stream.chunk * (call < calls // 2)])
        x = Chunk(0.1 * torch.randn(2, stream.chunk, 1), lengths, torch.tensor([False, call >= calls // 2]))
        blocks, state = stream.step(x, state)
        (a, states[0]), (b, states[1]) = ours.step(blocks, states[0]), theirs.step(blocks, states[1])
        counts = _common(a.lengths, b.lengths, exact)
        pairs += [(a.values[row, :count], b.values[row, :count]) for row, count in enumerate(counts)]
    return pairs


def _common(ours: Tensor, theirs: Tensor, exact: bool) -> list[int]:
    """How many tokens of each row both have: all where they must be exact; eight bits may complete more or fewer."""
    if exact:
        check_counts(ours, theirs)
    return list(map(int, ours.minimum(theirs)))


def write(transcriber: Transcriber, folder: Path, contexts: Sequence[Any] | None, front: bool) -> dict[str, Any]:
    """Exports in single precision to a folder that is there: what `meta.json` then says.

    Raises:
        InputError: the model has a bias decoder.
    """
    model = transcriber.model
    assert isinstance(model, Paraformer)
    if isinstance(model, SeacoParaformer):
        raise InputError("a SeACo-Paraformer cannot be exported: its bias decoder and its finer times have no graph")
    files: list[Path] = []
    meta: dict[str, Any] = described("paraformer") | {
        "rate": model.rate, "step_ms": model.step_ms, "lead_ms": model.lead_ms, "vocab_size": model.vocab_size,
        "special": model.special, "takes": "samples" if front else "features", "front": front_meta(model.front),
        "contexts": [],
    }  # fmt: skip
    for grid in model.contexts if contexts is None else contexts:
        entry: dict[str, Any] = {"context": list(grid)}
        if grid.whole:
            files.append(folder / "whole.onnx")
            in_dim = front_dim(model.front)
            export_function(
                Whole(model), (torch.randn(EXAMPLE_ROWS, EXAMPLE_STEPS, in_dim), torch.tensor([EXAMPLE_STEPS, 5])),
                files[-1], FEATURES, SCORES, {"features": ("batch", "time")},
            )  # fmt: skip
            meta["contexts"].append(entry | {"file": files[-1].name})
            continue
        name = "_".join(map(str, grid))
        files += [folder / f"encoder_{name}.onnx", folder / f"scores_{name}.onnx"]
        stream = model.streaming(grid) if front else model.encoder.at(grid)
        interface = export_stream(stream, files[-2], 1 if front else front_dim(model.front))
        packed = grid.room * model.encoder.dim + 3
        scores = export_stream(BlockScores(model.predictor, model.decoder, grid), files[-1], packed)
        meta["contexts"].append(
            entry | {"latency_ms": model.latency_ms(grid), "file": files[-2].name, "stream": interface.as_dict()}
            | {"scores_file": files[-1].name, "scores": scores.as_dict()}
        )  # fmt: skip
    share_weights(files, WEIGHTS)
    transcriber.tokenizer.save(folder)
    write_meta(folder, meta)
    return meta
