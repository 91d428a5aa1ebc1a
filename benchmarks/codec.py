"""What codecs of the published sizes cost: 10 s of audio, one thread, CPU time in products of two 1024 x 1024 matrices.

python benchmarks/codec.py [--rounds 5]

Codec and matrix product take turns in one process, because the speed of a shared machine changes; random weights.
"""

import argparse
import time
from collections.abc import Callable

import torch

from speechkit.codecs.codebook import Codebook
from speechkit.codecs.quantizers import VectorQuantizer
from speechkit.codecs.seanet import SeanetEncoder
from speechkit.codecs.vocos import VocosDecoder
from speechkit.codecs.wavtokenizer import WavTokenizer

SECONDS = 10
SIZES = {"frame75": ((2, 4, 5, 8), 320), "frame40": ((4, 5, 5, 6), 600)}


def cpu_s(work: Callable[[], object]) -> float:
    """Of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def codec(strides: tuple[int, ...], hop: int) -> WavTokenizer:
    """Of a published size."""
    decoder = VocosDecoder(hop=hop, n_fft=4 * hop)
    return WavTokenizer(SeanetEncoder(strides=strides), VectorQuantizer(Codebook(4096, 512)), decoder).eval()


@torch.inference_mode()
def main() -> None:
    """Prints a line for each size and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    square = torch.randn(1024, 1024)
    for name, (strides, hop) in SIZES.items():
        model = codec(strides, hop)
        wave = torch.randn(1, SECONDS * model.rate)
        lengths = torch.tensor([wave.shape[1]])
        codes, counts = model.encode(wave, lengths)
        for what, work in (
            ("encode", lambda m=model, w=wave, n=lengths: m.encode(w, n)),
            ("decode", lambda m=model, c=codes, n=counts: m.decode(c, n)),
        ):
            work()
            pairs = [(cpu_s(work), min(cpu_s(lambda: square @ square) for _ in range(3))) for _ in range(rounds)]
            ratios = sorted(spent / product for spent, product in pairs)
            best, product = min(spent for spent, _ in pairs), min(product for _, product in pairs)
            print(
                f"{name} {what}: {ratios[len(ratios) // 2]:.1f} products (of {ratios[0]:.1f} to {ratios[-1]:.1f}), "
                f"best {best:.3f} s, product {1000 * product:.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
