"""A recogniser as a folder of ONNX graphs: one a look-ahead, one a head's part, and `meta.json` that describes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.asr.conformer import Context
from speechkit.asr.decoding.greedy import MAX_SYMBOLS
from speechkit.asr.joiner import Joiner
from speechkit.asr.model import Recognizer
from speechkit.asr.predictor import Predictor
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.onnx import WEIGHTS
from speechkit.onnx.folder import described, write_meta
from speechkit.onnx.front import front_meta
from speechkit.streaming.export import EXAMPLE_ROWS, export_function, export_stream, share_weights


class PredictorStep(nn.Module):
    """The prediction network's next output, projected for the joint network, and its next state."""

    def __init__(self, predictor: Predictor, joiner: Joiner) -> None:
        super().__init__()
        self.predictor, self.joiner = predictor, joiner

    def forward(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch,) int64 tokens and (batch, layers, dim) states -> (batch, joiner dim) and the next states."""
        x, states = self.predictor.embedding(tokens), []
        for layer in range(self.predictor.layers):
            x, c = self._cell(layer, x, hidden[:, layer], cell[:, layer])
            states.append((x, c))
        hidden, cell = (torch.stack(parts, dim=1) for parts in zip(*states, strict=True))
        return self.joiner.project_predictor(x), hidden, cell

    def _cell(self, layer: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step of an LSTM's layer, written out: of `nn.LSTM` the exporter makes a graph that is not valid."""
        lstm = self.predictor.lstm
        w_ih, w_hh, b_ih, b_hh = lstm.all_weights[layer]
        gates = nn.functional.linear(x, w_ih, b_ih) + nn.functional.linear(h, w_hh, b_hh)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class JointStep(nn.Module):
    """The joint network on several encoder steps of each row and one output of its predictor."""

    def __init__(self, joiner: Joiner) -> None:
        super().__init__()
        self.joiner = joiner

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """(batch, steps, encoder_dim) and (batch, joiner dim) -> (batch, steps, vocab_size + 1) logits."""
        return self.joiner.join(self.joiner.project_encoder(encoder), predictor[:, None])


def write(
    transcriber: Transcriber, folder: Path, contexts: Sequence[Context] | None = None, front: bool = True
) -> dict[str, Any]:
    """Exports a recogniser in single precision to a folder that is there.

    Args:
        transcriber: the recogniser.
        folder: where.
        contexts: look-aheads; all those that the model streams with where none are given.
        front: the graphs take samples; without it log-mel features.

    Returns:
        What `meta.json` then says.

    Raises:
        InputError: the model cannot stream.
    """
    model = transcriber.network
    chosen = [context for context in model.contexts if model.streams(context)] if contexts is None else list(contexts)
    if not chosen or not all(map(model.streams, chosen)):
        raise InputError("this model was trained with full context: it has no stream that could be exported")
    files: list[Path] = []
    meta: dict[str, Any] = described("recognizer") | {
        "rate": transcriber.rate, "step_ms": model.step_ms, "dim": model.encoder.dim, "blank": model.blank,
        "takes": "samples" if front else "features", "front": front_meta(model.front), "contexts": [],
    }  # fmt: skip
    for context in chosen:
        path = folder / f"encoder_{context[0]}_{context[1]}.onnx"
        module = model.streaming(context) if front else model.encoder.at(context)
        interface = export_stream(module, path, 1 if front else model.front.n_mels)
        files.append(path)
        meta["contexts"].append(
            {"context": list(context), "latency_ms": model.latency_ms(context), "file": path.name}
            | {"stream": interface.as_dict()}
        )
    meta["heads"] = {name: _write_head(model, name, folder, files) for name in model.decoders}
    share_weights(files, WEIGHTS)
    transcriber.tokenizer.save(folder)
    write_meta(folder, meta)
    return meta


def _write_head(model: Recognizer, name: str, folder: Path, files: list[Path]) -> dict[str, Any]:
    encoder = torch.randn(EXAMPLE_ROWS, 3, model.encoder.dim)
    if name == "ctc":
        assert model.ctc is not None
        files.append(folder / "ctc.onnx")
        export_function(model.ctc, (encoder,), files[-1], ["encoder"], ["log_probs"], {"encoder": ("batch", "steps")})
        return {"file": files[-1].name}
    predictor, joiner = model.predictor, model.joiner
    assert predictor is not None
    assert joiner is not None
    state = predictor.init_state(EXAMPLE_ROWS)
    files.append(folder / "predictor.onnx")
    export_function(
        PredictorStep(predictor, joiner), (torch.zeros(EXAMPLE_ROWS, dtype=torch.int64), *state), files[-1],
        ["tokens", "hidden", "cell"], ["predictor", "hidden_next", "cell_next"],
    )  # fmt: skip
    files.append(folder / "joiner.onnx")
    dim = joiner.predictor.out_features
    export_function(
        JointStep(joiner), (encoder, torch.randn(EXAMPLE_ROWS, dim)), files[-1],
        ["encoder", "predictor"], ["logits"], {"encoder": ("batch", "steps")},
    )  # fmt: skip
    return {
        "predictor": files[-2].name, "joiner": files[-1].name,
        "layers": predictor.layers, "dim": predictor.dim, "joiner_dim": dim, "max_symbols": MAX_SYMBOLS,
    }  # fmt: skip
