"""Whether a Paraformer finds as many tokens as there are: its words with its own number, with the right one, and CTC's.

python -m recipes.librispeech.token_counts RELEASE CORPUS SPLIT
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jiwer
import torch
from torch import Tensor

import speechkit
from speechkit.asr.decoding.greedy import CtcGreedy
from speechkit.asr.paraformer import Heard, Paraformer
from speechkit.asr.transcriber import Transcriber
from speechkit.data import manifest
from speechkit.errors import InputError
from speechkit.text import normalize

HALF = 0.5  # of a token: a sum of weights that is off by more gives another number of tokens


def said(api: Transcriber, heard: Heard, counts: Tensor | None) -> str:
    """Text of one utterance in full context, its weights scaled to so many tokens, or as they are."""
    model = api.model
    assert isinstance(model, Paraformer)
    fired = model.integrated(heard, counts)
    if not fired.embeds.shape[1]:
        return ""
    best = model.decoder(fired.embeds, model.sight(heard, fired)).argmax(-1)
    return api.tokenizer.decode(model.text(best[0].tolist()))


@torch.inference_mode()
def measured(api: Transcriber, corpus: str, split: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Every utterance's text, what was heard in each way, and how far the sum of weights is off, in tokens."""
    model = api.model
    if not isinstance(model, Paraformer):
        raise InputError(f"this is of Paraformers, not of a {type(model).__name__}")
    with tempfile.TemporaryDirectory() as cache:
        for item in manifest.find(split, Path(corpus), Path(cache)):
            text, wave = normalize(item.text), torch.from_numpy(item.wave(api.rate))[None]
            heard = model.heard(*model.front(wave, torch.tensor([wave.shape[1]])))
            counts = torch.tensor([len(api.tokenizer.encode(text)) + 1])  # and the token of the end
            ways = {"own number": said(api, heard, None), "right number": said(api, heard, counts)}
            if model.ctc is not None:
                emitted = CtcGreedy(model.ctc)(heard.steps, heard.valid.sum(1))
                tokens = emitted.values[0, : int(emitted.lengths[0]), 0].long().tolist()
                ways["CTC"] = api.tokenizer.decode(tokens)
            yield text, ways, float(model.integrated(heard).total - counts)


def main(words: Sequence[str] | None = None) -> int:
    """Prints error rates, and how often the number is wrong."""
    parser = argparse.ArgumentParser(prog="token_counts", description=__doc__.partition("\n")[0])
    for name in ("release", "corpus", "split"):
        parser.add_argument(name)
    options = parser.parse_args(words)
    try:
        found = list(measured(speechkit.load(options.release), options.corpus, options.split))
        if not found:
            raise InputError(f"{options.split} of {options.corpus} has no utterances")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    texts = [text for text, _, _ in found]
    for way in found[0][1]:
        rate = jiwer.wer(texts, [ways[way] for _, ways, _ in found])
        print(f"{way}: WER {100 * rate:.2f} % of {sum(len(text.split()) for text in texts)} words")
    off = sum(abs(error) > HALF for _, _, error in found) / len(found)
    print(f"off by more than half a token: {100 * off:.0f} % of {len(found)} utterances")
    return 0


if __name__ == "__main__":
    sys.exit(main())
