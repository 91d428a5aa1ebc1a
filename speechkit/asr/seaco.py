"""SeACo-Paraformer (Shi et al. 2023): a Paraformer with a bias decoder for phrases, and times of a finer predictor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.asr.cif import GRID, Fired
from speechkit.asr.conformer_blocks import ConformerBlocks
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.nar_scores import WholeScores
from speechkit.asr.paraformer import LEAD, CifPredictor, Paraformer
from speechkit.asr.sanm_decoder import SanmDecoder, Sight
from speechkit.asr.sanm_encoder import SanmEncoder
from speechkit.asr.seaco_bias import BiasDecoder
from speechkit.features import LogMel
from speechkit.low_frame_rate import LowFrameRateFbank
from speechkit.nn.masks import valid_mask

SLACK = 1e-4  # of a token: what may be missing where it is complete, as in FunASR's timestamps


class CifPredictorV3(CifPredictor):
    """A `CifPredictor` with a second head for times, which weighs several frames of each step.

    Steps are up-sampled by a transposed convolution and read in both directions; the weights that a linear layer gives
    then are scaled so that their sum is the number of tokens. No reference outputs of it are at hand: the shapes of
    published tensors and the configuration determine it, and timestamps begin 1.5 frames before the one that completes
    a token, as those of the first head do in steps.

    Args:
        dim: of the steps.
        tail: as of `Cif`.
        upsample: frames of a step.
        smooth, noise: weights are ``relu(smooth * sigmoid - noise)``.

    Raises:
        ValueError: a step has no frame.
    """

    def __init__(
        self, dim: int = 512, tail: float = 0.45, upsample: int = 3, smooth: float = 0.25, noise: float = 0.01
    ) -> None:
        super().__init__(dim, tail)
        if upsample < 1:
            raise ValueError(f"a step has at least one frame, got {upsample}")
        self.upsample, self.smooth, self.noise = upsample, smooth, noise
        self.frames = nn.ConvTranspose1d(dim, dim, upsample, upsample)
        self.blstm = nn.LSTM(dim, dim, batch_first=True, bidirectional=True)
        self.frame_out = nn.Linear(2 * dim, 1)

    def frame_weights(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """(batch, steps, dim), (batch,) valid ones -> (batch, steps * upsample), zero beyond each row's own."""
        if not steps.shape[1]:
            return steps.new_zeros(len(steps), 0)
        frames = self.frames(steps.transpose(1, 2)).transpose(1, 2)
        counts = self.upsample * lengths
        packed = nn.utils.rnn.pack_padded_sequence(frames, counts.clamp(min=1).cpu(), True, enforce_sorted=False)
        read, _ = nn.utils.rnn.pad_packed_sequence(self.blstm(packed)[0], True, total_length=frames.shape[1])
        weights = F.relu(self.smooth * torch.sigmoid(self.frame_out(read)[..., 0]) - self.noise)
        return weights * valid_mask(counts, frames.shape[1])

    def completed(self, steps: Tensor, lengths: Tensor, counts: Tensor, room: int) -> Tensor:
        """When each of (batch,) tokens is complete: (batch, room), in steps and fractions of them.

        `steps` is (batch, steps, dim), of which (batch,) are valid.
        """
        weights = self.frame_weights(steps, lengths).double()
        scaled = weights * (counts / weights.sum(1).clamp(min=GRID))[:, None]
        frames = self.cif.fires(scaled, room, torch.full_like(counts, SLACK, dtype=torch.double))
        last = (self.upsample * lengths - 1).clamp(min=0)[:, None]
        return frames.minimum(last) / self.upsample


class SeacoScores(WholeScores):
    """As `WholeScores`, with times of the second head and, where there are phrases, through the bias decoder.

    Args:
        predictor, decoder, compat: as of `WholeScores`.
        bias: the bias decoder.
        phrases: (phrases, dim) of `BiasDecoder.phrases`, the last of which stands for none; None where there are none.
    """

    predictor: CifPredictorV3

    def __init__(
        self,
        predictor: CifPredictorV3,
        decoder: SanmDecoder,
        bias: BiasDecoder,
        phrases: Tensor | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__(predictor, decoder, compat)
        self.bias, self.phrases = bias, phrases

    def decoded(self, embeds: Tensor, sight: Sight) -> Tensor:
        """(batch, tokens, dim) -> scores (batch, tokens, vocabulary)."""
        hidden = self.decoder.hidden(embeds, sight)
        scores: Tensor = self.decoder.out(hidden)
        if self.phrases is None:
            return scores
        return self.bias.merged(scores, self.bias(embeds, hidden, sight.tokens, self.phrases))

    def completed(self, x: Tensor, lengths: Tensor, fired: Fired) -> Tensor:
        """When each token is complete, (batch, tokens), in steps and fractions of them."""
        return self.predictor.completed(x, lengths, fired.counts, fired.embeds.shape[1])


class SeacoParaformer(Paraformer):
    """A Paraformer for whole utterances whose phrases go through a bias decoder, and raise scores as ever.

    Args:
        front, encoder, predictor, decoder, special, end: as of `Paraformer`.
        bias: the bias decoder.
        start: the token that stands, alone, for no phrase.

    Raises:
        ValueError: the parts do not fit.
    """

    predictor: CifPredictorV3

    def __init__(
        self,
        front: LowFrameRateFbank | LogMel,
        encoder: SanmEncoder | ConformerBlocks,
        predictor: CifPredictorV3,
        decoder: SanmDecoder,
        bias: BiasDecoder,
        special: Sequence[int] = (),
        end: int | None = None,
        start: int = 1,
    ) -> None:
        super().__init__(front, encoder, predictor, decoder, special=special, end=end)
        if (bias.out.in_features, bias.out.out_features) != (decoder.dim, decoder.out.out_features):
            raise ValueError("the bias decoder must have the width and the vocabulary of the decoder")
        if not 0 <= start < decoder.vocab_size:
            raise ValueError(f"the token that stands for no phrase must be one of the vocabulary, got {start}")
        self.bias, self.start = bias, start

    @property
    def lead_ms(self) -> float:
        """As of `Paraformer`, in the finer frames of its predictor."""
        return LEAD * self.step_ms / self.predictor.upsample

    @torch.no_grad()
    def whole_scores(self, booster: PhraseBooster | None = None) -> SeacoScores:
        """Steps of whole utterances to scores, through the bias decoder where there are phrases."""
        phrases = None
        if booster is not None and booster.tokens:
            phrases = self.bias.phrases(self.decoder.embed, [*booster.tokens, [self.start]])
        return SeacoScores(self.predictor, self.decoder, self.bias, phrases, self.compat)
