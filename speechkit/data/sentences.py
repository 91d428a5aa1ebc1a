"""Sentences from a small grammar: some two hundred words, so that a small model learns them from an hour of speech."""

import random
import re
import zlib
from collections.abc import Iterator

# No homophones among the content words, and no "for" beside "four": the ear alone must tell them apart.
WORDS = {
    "name": "anna peter maria david laura simon julia thomas emma henry sophie martin",
    "person": "teacher doctor farmer captain painter driver singer brother sister uncle",
    "animal": "dog cat rabbit parrot donkey tiger",
    "thing": "table window lamp basket camera mirror ladder blanket pencil hammer guitar bicycle box",
    "things": "apples bottles letters codebooks tickets candles lemons potatoes chairs spoons",
    "food": "bread cheese butter coffee honey soup",
    "colour": "green yellow purple silver black brown",
    "quality": "old little heavy broken empty dusty",
    "nature": "old little young tall",
    "kind": "old little quiet empty",
    "feeling": "happy tired hungry angry busy late",
    "city": "london paris boston dublin sydney berlin",
    "place": "market river harbour station garden library kitchen school mountain village hospital bridge",
    "near": "near behind beside",
    "did": "bought sold carried painted found cleaned borrowed dropped opened",
    "ate": "cooked shared wanted",
    "moved": "walked travelled returned",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "when": "today tomorrow yesterday",
    "part": "morning evening afternoon",
    "weather": "rain snow wind fog",
    "digit": "zero one two three four five six seven eight nine",
    "teen": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    "few": "two three four five six seven eight nine",
    "unit": "one two three four five six seven eight nine",
    "clock": "one two three four five six seven eight nine ten eleven twelve",
    "minutes": "five ten twenty thirty forty fifty",
}
# {several}: a number above one; {who}, {what}, {where} and {time} are phrases of their own.
PHRASES = {
    "several": ("{few}", "{teen}", "{tens}", "{tens} {unit}"),
    "who": ("{name}", "{name}", "the {person}", "my {person}", "the {nature} {person}"),
    "what": (
        "the {thing}",
        "a {colour} {thing}",
        "the {quality} {thing}",
        "{several} {things}",
        "{several} {colour} {things}",
    ),
    "where": ("in {city}", "{near} the {place}", "{near} the {kind} {place}", "at the {place}"),
    "time": ("on {day}", "on {day} {part}", "{when}", "this {part}", "at {clock} {minutes}"),
}
TEMPLATES = (
    "{who} {did} {what}",
    "{who} {did} {what} {where}",
    "{who} {did} {what} {time}",
    "{who} and {name} {did} {several} {things}",
    "{who} {moved} from {city} to {city}",
    "{who} {moved} to the {place} with {who}",
    "{who} is {feeling} {time}",
    "{who} {ate} {food} and {food} with {name}",
    "the {animal} is sleeping {near} the {thing}",
    "there are {several} {things} {where}",
    "the {colour} {thing} is {near} the {thing}",
    "please open the {quality} {thing}",
    "please bring {several} {things} {time}",
    "where is the {colour} {thing}",
    "did {who} see my {animal} {where}",
    "the number is {digit} {digit} {digit} {digit}",
    "call {name} at {digit} {digit} {digit} {digit} {digit}",
    "the train leaves at {clock} {minutes}",
    "the price is {tens} {unit} dollars",
    "we expect {weather} and {weather} in {city}",
    "there was {weather} {near} the {place} {time}",
    "turn left {near} the {place} and then turn right",
    "how many {things} did {who} see",
    "{several} minutes later {who} {moved} to {city}",
)
PARTS = ("train", "dev", "test")
LONGEST = 10  # words
_TWICE = re.compile(r"\b(\w+) (?:and|to) \1\b")  # "from paris to paris"
_SLOT = re.compile(r"\{(\w+)\}")
_CHOICES = {slot: tuple(words.split()) for slot, words in WORDS.items()} | PHRASES


def vocabulary() -> frozenset[str]:
    """Every word that a sentence can have."""
    literal = " ".join([*TEMPLATES, *(phrase for phrases in PHRASES.values() for phrase in phrases)])
    return frozenset(" ".join([*WORDS.values(), _SLOT.sub(" ", literal)]).split())


def part_of(sentence: str) -> str:
    """The part, train, dev or test, to which a sentence belongs, whatever seed drew it: 18 : 1 : 1."""
    return {0: "dev", 1: "test"}.get(zlib.crc32(sentence.encode()) % 20, "train")


def sentences(seed: int, part: str | None = None) -> Iterator[str]:
    """Different sentences of 3 to 10 lower-case words without end; the sequence depends on the arguments alone.

    Args:
        seed: what is drawn.
        part: only the sentences of this part (`part_of`), so that no two parts share one; None for all.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    rng, seen = random.Random(seed), set[str]()
    while True:
        sentence = _expand(rng.choice(TEMPLATES), rng)
        if sentence in seen or _TWICE.search(sentence) or not 3 <= len(sentence.split()) <= LONGEST:
            continue
        seen.add(sentence)
        if part is None or part_of(sentence) == part:
            yield sentence


def _expand(text: str, rng: random.Random) -> str:
    while _SLOT.search(text):
        text = _SLOT.sub(lambda slot: rng.choice(_CHOICES[slot[1]]), text)
    return text
