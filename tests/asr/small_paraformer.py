"""Paraformers small enough for a test."""

from typing import Any

import torch
from torch import Tensor, nn

from speechkit.asr.blocks import Grid
from speechkit.asr.conformer import ConformerEncoder
from speechkit.asr.conformer_blocks import ConformerBlocks
from speechkit.asr.decoding.greedy import left_aligned
from speechkit.asr.paraformer import CifPredictor, Paraformer
from speechkit.asr.sanm_decoder import SanmDecoder
from speechkit.asr.sanm_encoder import SanmEncoder
from speechkit.fbank import KaldiFbank
from speechkit.features import LogMel
from speechkit.low_frame_rate import LowFrameRate, LowFrameRateFbank

VOCAB = 9


def paraformer(
    grids: Any = ((0, 3, 2, 2, 1),),
    kind: str = "sanm",
    rate: int = 1000,
    layers: tuple[int, int] = (3, 2),
    **options: Any,
) -> Paraformer:
    """SANM steps of 20 ms, Conformer ones of 80 ms; random weights large enough that all parts matter."""
    torch.manual_seed(3)
    front: Any
    encoder: Any
    if kind == "conformer":
        front = LogMel(sample_rate=rate, n_mels=8, n_fft=32 * rate // 1000, mean=-1.3, deviation=1.4)
        sizes: Any = {"dim": 8, "layers": 2, "heads": 2, "conv_kernel": 3, "subsampling_channels": 3}
        encoder = ConformerBlocks(ConformerEncoder(n_mels=8, contexts=[(6, 1)], **sizes))
    else:
        joined = LowFrameRate(4, 4, 2, mean=8.0, deviation=3.0)
        front = LowFrameRateFbank(KaldiFbank(rate, 4), joined)
        encoder = SanmEncoder(16, 8, layers[0], 2, 12, 5)
    decoder = SanmDecoder(VOCAB, 8, layers[1], 2, 12, 5, shift=2, end=True)
    model = Paraformer(front, encoder, CifPredictor(8), decoder, grids=grids, **options)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.6)
    nn.init.normal_(model.decoder.out.weight, std=3.0)
    nn.init.constant_(model.predictor.out.bias, 0.5)
    model.double().eval()
    with torch.no_grad():  # all tokens are about as probable
        heard = model.heard(*model.front(torch.randn(1, 4 * rate, dtype=torch.double), torch.tensor([4 * rate])))
        fired = model.integrated(heard)
        model.decoder.out.bias.data -= model.decoder(fired.embeds, model.sight(heard, fired)).mean((0, 1))
    return model


def said(model: Paraformer, features: Tensor, lengths: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(token, step, log-probability) as training's pass over all blocks at once has them, and how many."""
    heard = model.heard(features, lengths, grid)
    fired = model.integrated(heard)
    sight = model.sight(heard, fired)
    if not fired.embeds.shape[1]:
        return fired.embeds.new_zeros(len(lengths), 0, 3), fired.counts
    log_probs = model.decoder(fired.embeds, sight).log_softmax(-1)
    best = log_probs.max(-1)
    flat = model.predictor.cif.fires(fired.weights, fired.embeds.shape[1])
    block = grid.size if grid.size else heard.room
    last = (heard.owned.sum(1) - 1).clamp(min=0)[:, None]
    steps = flat // heard.room * block + flat % heard.room - grid.left
    steps = torch.where(flat < heard.steps.shape[1], steps, last).minimum(last)
    values = torch.stack([best.indices.double(), steps.double(), best.values], dim=-1)
    values, counts = left_aligned(values, sight.tokens & (best.indices != model.end))
    return values, counts
