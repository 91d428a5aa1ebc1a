"""Encoder time per chunk against NeMo's own streaming step: same sizes, same run, pairs in turn (see README.md)."""

import argparse
import json
import os
import platform
import statistics
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nemo.collections.asr.modules.conformer_encoder import ConformerEncoder as NemoEncoder
from nemo.utils import logging

from speechkit.asr.conformer import ConformerEncoder, Context
from speechkit.commands.bench import WARM_UP, chunk_calls, machine, matmul_ms, timed

SIZES = {"32m": (256, 16, 4), "114m": (512, 17, 8)}  # dim, layers, heads, as published
CONTEXTS: list[Context] = [(70, 13), (70, 6), (70, 1), (70, 0)]


def nemo_encoder(dim: int, layers: int, heads: int) -> NemoEncoder:
    """NeMo's cache-aware streaming FastConformer, as its recipes configure it."""
    return NemoEncoder(
        feat_in=80, n_layers=layers, d_model=dim, n_heads=heads, subsampling="dw_striding", subsampling_factor=8,
        subsampling_conv_channels=256, causal_downsampling=True, ff_expansion_factor=4, conv_kernel_size=9,
        conv_norm_type="layer_norm", conv_context_size="causal", att_context_style="chunked_limited",
        att_context_size=[list(context) for context in CONTEXTS], self_attention_model="rel_pos", xscaling=True,
    ).eval()  # fmt: skip


def nemo_calls(encoder: NemoEncoder, context: Context) -> Callable[[], None]:
    """A function that runs NeMo's `cache_aware_stream_step` on the next chunk of a stream that is under way."""
    encoder.set_default_att_context_size(list(context))
    encoder.setup_streaming_params()
    settings = encoder.streaming_cfg
    frames = settings.chunk_size[1] + settings.pre_encode_cache_size[1]
    signal, lengths = torch.randn(1, 80, frames), torch.tensor([frames])
    caches = encoder.get_initial_cache_state(batch_size=1)

    def call() -> None:
        nonlocal caches
        caches = encoder.cache_aware_stream_step(
            signal, lengths, *caches, keep_all_outputs=False, drop_extra_pre_encoded=settings.drop_extra_pre_encoded
        )[2:]

    for _ in range(WARM_UP):
        call()
    return call


def compare(size: str, context: Context, pairs: int) -> dict[str, Any]:
    """CPU milliseconds per chunk, each of ours followed by one of NeMo's and by one matmul."""
    dim, layers, heads = SIZES[size]
    torch.manual_seed(0)
    ours = ConformerEncoder(dim=dim, layers=layers, heads=heads).eval()
    chain = ours.at(context)
    call_ours = chunk_calls(chain, torch.randn(1, chain.chunk, 80))
    call_nemo = nemo_calls(nemo_encoder(dim, layers, heads), context)
    times = [(timed(call_ours)[0], timed(call_nemo)[0], matmul_ms(1)) for _ in range(pairs)]
    columns = dict(zip(("speechkit", "nemo", "matmul"), zip(*times, strict=True), strict=True))
    median = {name: statistics.median(values) for name, values in columns.items()}
    best = {name: min(values) for name, values in columns.items()}
    return {
        "size": size, "context": context, "chunk_ms": 80 * (context[1] + 1), "median_ms": median, "best_ms": best,
        "ratio_median": median["speechkit"] / median["nemo"], "ratio_best": best["speechkit"] / best["nemo"],
        "matmul_ratio": best["speechkit"] / best["matmul"], "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Prints a Markdown table, and the numbers as JSON where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["114m", "32m"], choices=list(SIZES))
    parser.add_argument("--pairs", type=int, default=40, help="calls of each side per row of the table")
    parser.add_argument("--json", help="file for the numbers")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    about = machine() | {"nemo_toolkit": version("nemo_toolkit"), "python": platform.python_version()}
    print(", ".join(f"{key} {value}" for key, value in about.items()), "\n")
    print(
        "| size | context | ours ms, median (best) | NeMo ms, median (best) | ratio, median (best) | x matmul | load |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = []
    with torch.inference_mode():
        for size in options.sizes:
            for context in CONTEXTS:
                row = compare(size, context, options.pairs)
                rows.append(row)
                m, b = row["median_ms"], row["best_ms"]
                print(
                    f"| {size} | {list(context)} | {m['speechkit']:.1f} ({b['speechkit']:.1f}) "
                    f"| {m['nemo']:.1f} ({b['nemo']:.1f}) | **{row['ratio_median']:.2f}** ({row['ratio_best']:.2f}) "
                    f"| {row['matmul_ratio']:.1f} | {row['load']:.1f} |",
                    flush=True,
                )
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
