"""SeACo-Paraformers small enough for a test."""

from typing import Any

import torch
from torch import nn

from speechkit.asr.paraformer import Paraformer
from speechkit.asr.seaco import CifPredictorV3, SeacoParaformer
from speechkit.asr.seaco_bias import BiasDecoder
from tests.asr.small_paraformer import VOCAB, paraformer

NO_BIAS = 8


def seaco(rate: int = 1000, layers: int = 7) -> tuple[Paraformer, SeacoParaformer]:
    """A Paraformer, and a SeACo-Paraformer of the same weights."""
    plain: Any = paraformer((), rate=rate, special=[0])
    torch.manual_seed(4)
    predictor = CifPredictorV3(8).double()
    bias = BiasDecoder(VOCAB + 1, 8, layers, 2, 12, 5, no_bias=NO_BIAS).double()
    for part in (predictor, bias):
        for name, parameter in part.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.6)
    predictor.load_state_dict(plain.predictor.state_dict(), strict=False)
    model = SeacoParaformer(plain.front, plain.encoder, predictor, plain.decoder, bias, special=[0])
    return plain, model.eval()
