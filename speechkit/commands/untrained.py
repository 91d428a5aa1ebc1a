"""Models of a recipe with random weights, to measure what trained ones will cost."""

from collections.abc import Sequence

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from speechkit.asr.model import Recognizer
from speechkit.asr.transcriber import Transcriber
from speechkit.configuration import check
from speechkit.errors import InputError
from speechkit.release import build
from speechkit.text import CharTokenizer

VOCAB_SIZE = 1024
FIRST_SYMBOL = 0x4E00  # any characters will do


def untrained(recipe: str, overrides: Sequence[str] = ()) -> Recognizer:
    """A recipe's model with random weights.

    Args:
        recipe: its name.
        overrides: Hydra's, such as ``model=streaming_conformer_small`` or ``model.encoder.layers=2``.

    Raises:
        InputError: there is no such recipe or option, or it is no recipe of recognition.
    """
    words = [f"recipe={recipe}", f"vocab_size={VOCAB_SIZE}", *overrides]
    GlobalHydra.instance().clear()  # of the entry point that asks, which has its configuration already
    check("train", words)
    with initialize_config_module("speechkit.conf", version_base="1.3"):
        config = compose("train", words)
    model = build(OmegaConf.to_container(config.model, resolve=True))
    if not isinstance(model, Recognizer):
        raise InputError(f"recipe {recipe} trains no recogniser")
    return model


def silent(recipe: str, overrides: Sequence[str] = ()) -> Transcriber:
    """The same as a transcriber that says nothing: as it is, it would emit at random; errors as `untrained`."""
    model = untrained(recipe, overrides)
    for head in (model.ctc, model.joiner):
        if head is not None:
            head.out.bias.data[-1] = 50.0  # more would cost the other logits their last digits
    return Transcriber(model, CharTokenizer([" ", *(chr(FIRST_SYMBOL + i) for i in range(model.blank - 1))]))
