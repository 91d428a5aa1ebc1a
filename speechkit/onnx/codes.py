"""How good codes are that another run time gave: where two rows are nearly as near, either will do."""

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.codecs.quantizers import FiniteScalarQuantizer, ResidualQuantizer, VectorQuantizer
from speechkit.onnx.parity import Parity

Quantizer = VectorQuantizer | ResidualQuantizer | FiniteScalarQuantizer


def layers(quantizer: VectorQuantizer | ResidualQuantizer) -> list[VectorQuantizer]:
    """The quantisers of all codebooks."""
    found = quantizer.layers if isinstance(quantizer, ResidualQuantizer) else [quantizer]
    return [layer for layer in found if isinstance(layer, VectorQuantizer)]


def distances(quantizer: Quantizer, what: str, latents: Tensor, codes: Tensor) -> Parity:
    """How much farther what codes stand for is from what they were made of than the nearest there is, at most.

    Args:
        quantizer: of the model.
        what: was compared.
        latents: (count, dim) of the model.
        codes: (count, codebooks) of the export.
    """
    if isinstance(quantizer, FiniteScalarQuantizer):
        farther = _beyond(quantizer, latents, codes)
    else:
        farther = _beside(quantizer, latents, codes)
    size = float(latents.abs().amax()) if len(latents) else 0.0
    return Parity(None, f"{what}, distances of its codes", float(farther.max()) if len(farther) else 0.0, size)


def _beside(quantizer: VectorQuantizer | ResidualQuantizer, latents: Tensor, codes: Tensor) -> Tensor:
    """Of rows of codebooks, each of which is given what the codes before it left, whichever they are."""
    rest, farther = latents.double(), []
    for layer, code in zip(layers(quantizer), codes.unbind(-1), strict=True):
        apart = torch.cdist(F.normalize(rest, dim=-1) if layer.normalize else rest, layer.codebook.embed.double())
        farther.append(apart.gather(1, code[:, None])[:, 0] - apart.amin(1))
        rest = rest - layer.decode(code)
    return torch.cat(farther)


def _beyond(quantizer: FiniteScalarQuantizer, latents: Tensor, codes: Tensor) -> Tensor:
    """Of whole numbers: what they are off beyond the half that rounding may be."""
    apart = quantizer.bounded(latents[None])[0] - quantizer.digits(codes[:, 0])
    return (apart.abs().amax(-1) - 0.5).clamp(min=0)
