"""A WavTokenizer small enough for tests, by its own names and by the published ones."""

import torch
from torch import Tensor

from speechkit.codecs.codebook import Codebook
from speechkit.codecs.quantizers import ResidualQuantizer, VectorQuantizer
from speechkit.codecs.seanet import SeanetEncoder
from speechkit.codecs.vocos import VocosDecoder
from speechkit.codecs.wavtokenizer import WavTokenizer


def codec(causal: bool = False, rate: int = 24_000, codebooks: int = 1) -> WavTokenizer:
    """Strides 2 and 3, 32 channels in the decoder, 16 codes of each book; random weights."""
    torch.manual_seed(0)
    encoder = SeanetEncoder(dim=8, filters=2, strides=(2, 3), causal=causal)
    left = 10 if causal else None
    decoder = VocosDecoder(8, dim=32, inner=48, layers=2, hop=6, n_fft=24, groups=8, left=left)
    book = Codebook(16, 8)
    quantizer = VectorQuantizer(book) if codebooks == 1 else ResidualQuantizer(book, codebooks)
    model = WavTokenizer(encoder, quantizer, decoder, rate)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def published() -> dict[str, Tensor]:
    """The tensors of `codec` as the published training names them, with weights in two parts."""
    own = codec().state_dict()
    found: dict[str, Tensor] = {}
    at, decoder = "feature_extractor.encodec.encoder.model.", "decoder."
    for name, x in own.items():
        if name.startswith("encoder."):
            part = name.removeprefix("encoder.")
            theirs = at + _encoder(part)
            if theirs.endswith("conv.weight"):
                found[theirs + "_g"] = x.flatten(1).norm(dim=1).view(-1, 1, 1)
                found[theirs + "_v"] = 3 * x  # its length says nothing
            else:
                found[theirs] = x
        elif name.startswith("quantizer."):
            found["feature_extractor.encodec.quantizer.vq.layers.0._codebook." + name.split("codebook.")[1]] = x
        else:
            found |= _decoder(name.removeprefix(decoder), x)
    found["head.istft.window"] = torch.hann_window(24)
    found["feature_extractor.encodec.decoder.model.0.conv.conv.bias"] = torch.zeros(4)
    return found


def _encoder(part: str) -> str:
    kind, _, rest = part.partition(".")
    if kind == "first":
        return f"0.conv.{rest}"
    if kind == "last":
        return f"9.conv.{rest}"
    if kind == "lstm":
        return f"7.{rest}"
    number, _, rest = rest.partition(".")
    if kind == "downs":
        return f"{3 + 3 * int(number)}.conv.{rest}"
    inner, _, rest = rest.partition(".")
    unit = {"narrow": "block.1", "widen": "block.3", "shortcut": "shortcut"}[inner]
    return f"{1 + 3 * int(number)}.{unit}.conv.conv.{rest}"


def _decoder(part: str, x: Tensor) -> dict[str, Tensor]:
    if part.startswith("mixing.2.qkv."):
        kind = part.rpartition(".")[2]
        return {
            f"backbone.pos_net.2.{name}.{kind}": piece[..., None] if kind == "weight" else piece
            for name, piece in zip("qkv", x.chunk(3), strict=True)
        }
    names = {
        "embed.conv": "backbone.embed", "between.layer": "backbone.norm", "between.group": "backbone.pos_net.5",
        "mixing.2.out": "backbone.pos_net.2.proj_out", "mixing": "backbone.pos_net", "blocks": "backbone.convnext",
        "head.norm": "backbone.final_layer_norm", "head.out": "head.out",
    }  # fmt: skip
    inner = {
        ".first_half.norm": ".norm1", ".first_half.conv": ".conv1", ".second_half.norm": ".norm2",
        ".second_half.conv": ".conv2", ".depthwise": ".dwconv", ".widen": ".pwconv1", ".narrow": ".pwconv2",
    }  # fmt: skip
    start = next(ours for ours in names if part.startswith(ours))
    theirs = names[start] + part[len(start) :]
    for ours, name in inner.items():
        theirs = theirs.replace(ours, name)
    linear = theirs == "backbone.pos_net.2.proj_out.weight"
    return {theirs: x[..., None] if linear else x}
