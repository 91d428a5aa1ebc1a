"""Front ends as `meta.json` describes them: written for who computes features, and read to compute them."""

from collections.abc import Mapping
from typing import Any

import torch

from speechkit.fbank import KaldiFbank
from speechkit.features import LogMel
from speechkit.low_frame_rate import LowFrameRate, LowFrameRateFbank

FrontEnd = LogMel | LowFrameRateFbank


def front_dim(front: FrontEnd) -> int:
    """Numbers of a feature."""
    return front.n_mels if isinstance(front, LogMel) else front.out


def front_meta(front: FrontEnd) -> dict[str, Any]:
    """The arguments of `LogMel`, or those of `KaldiFbank` and `LowFrameRate` with the latter's buffers."""
    if isinstance(front, LogMel):
        return {
            "sample_rate": front.sample_rate, "n_mels": front.n_mels, "n_fft": front.n_fft,
            "window_ms": 1000 * front.window_samples / front.sample_rate,
            "stride_ms": 1000 * front.hop / front.sample_rate, "preemphasis": front.preemphasis,
            "normalize": front.normalize, "mean": front.mean, "deviation": front.deviation,
            "length_rule": "floor+1" if front.extra_frames else "floor",
        }  # fmt: skip
    fbank, joined = front.fbank, front.joined
    ms = 1000 / fbank.sample_rate
    return {
        "fbank": {
            "sample_rate": fbank.sample_rate, "n_mels": fbank.n_mels, "window_ms": ms * fbank.window_samples,
            "stride_ms": ms * fbank.hop, "preemphasis": fbank.preemphasis,
        },
        "joined": {"dim": joined.dim, "span": joined.span, "stride": joined.stride},
        "shift": joined.shift.tolist(), "scale": joined.scale.tolist(),
    }  # fmt: skip


def front_of(meta: Mapping[str, Any]) -> FrontEnd:
    """The front end that `front_meta` described, for inference.

    Raises:
        ValueError: the description is damaged.
    """
    if "fbank" not in meta:
        return LogMel(**meta).eval()
    front = LowFrameRateFbank(KaldiFbank(**meta["fbank"]), LowFrameRate(**meta["joined"]))
    for name in ("shift", "scale"):
        values = torch.tensor(meta[name], dtype=torch.float32)
        if values.shape != (front.out,):
            raise ValueError(f"the front end's {name} has {tuple(values.shape)} numbers, not {front.out}")
        front.joined.get_buffer(name).copy_(values)
    return front.eval()
