"""What recognises speech from tokens alone: the second half of the recogniser that tokens are trained in."""

import torch
from torch import Tensor, nn

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.greedy import CtcGreedy
from speechkit.codecs.s3_layers import Block, surroundings
from speechkit.codecs.supervision.writer import Writer
from speechkit.errors import InputError


class Listener(nn.Module):
    """Blocks as the encoder's, over the vectors that tokens stand for, and one or two ways to text.

    CosyVoice's first tokenizer has a decoder that writes (Du et al. 2024, section 2.1).

    Args:
        dim: of the vectors.
        vocab_size: of the text's tokenizer.
        heads: of attention.
        layers: blocks.
        memory: steps of the memory of values, 0 for none.
        ctc: whether there is a CTC head.
        writer_layers: of the decoder that writes, 0 for none.
        dropout: in training.

    Raises:
        ValueError: there is no way to text.
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        heads: int,
        layers: int,
        memory: int = 31,
        ctc: bool = True,
        writer_layers: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not (ctc or writer_layers):
            raise ValueError("a listener needs a CTC head, a decoder that writes, or both")
        self.dim, self.head_dim = dim, dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, 4 * dim, memory, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.ctc = CtcHead(dim, vocab_size) if ctc else None
        self.writer = Writer(dim, vocab_size, heads, writer_layers, dropout) if writer_layers else None

    @property
    def decoders(self) -> list[str]:
        """The ways to text: ``ctc``, ``attention``."""
        return [name for name, head in (("ctc", self.ctc), ("attention", self.writer)) if head is not None]

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Vectors of tokens (batch, time, dim), (batch,) -> (batch, time, dim), zero after each row's valid ones."""
        around = surroundings(x, lengths, self.head_dim)
        x = x * around.valid
        for block in self.blocks:
            x = block(x, around)
        return self.norm(x) * around.valid

    @torch.no_grad()
    def decode(self, decoder: str, heard: Tensor, lengths: Tensor) -> list[list[int]]:
        """Greedy tokens of text of what `forward` gave, by one of `decoders`.

        Raises:
            InputError: there is no such decoder.
        """
        if decoder == "attention" and self.writer is not None:
            return self.writer.greedy(heard, lengths)
        if decoder == "ctc" and self.ctc is not None:
            emitted = CtcGreedy(self.ctc)(heard, lengths)
            rows = zip(emitted.values[..., 0].long().tolist(), emitted.lengths.tolist(), strict=True)
            return [row[:count] for row, count in rows]
        raise InputError(f"this listener has the decoders {', '.join(self.decoders)}, not {decoder}")
