"""Phrase boosting: a trie with failure arcs pays tokens on the way to a phrase and takes back what breaks off."""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.errors import InputError
from speechkit.text import Tokenizer, normalize

Phrases = Sequence[str | tuple[str, float]] | Mapping[str, float]
LARGEST = 1000.0  # nats: what a booster sums up stays exact


class _Trie:
    """Phrases token by token, and the failure arcs of Aho and Corasick (1975); node 0 is the root.

    At a node `earned` of `paid` is safe, because phrases on the way there are whole. A phrase that ends at the node
    itself (worth `whole`) is whole only if its word is over there. No phrase begins inside a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.children: list[dict[int, int]] = [{}]
        self.token = [-1]  # that leads to the node
        self.gain = [0.0]  # of that token
        self.paid, self.earned, self.whole = [0.0], [0.0], [0.0]
        self.phrase = [False]  # a phrase ends here

    def child(self, node: int, token: int, gain: float) -> int:
        """The child by `token`, made where it is missing; of several gains the highest counts."""
        if token not in self.children[node]:
            self.children[node][token] = self._add(token)
        child = self.children[node][token]
        self.gain[child] = max(self.gain[child], gain)
        return child

    def _add(self, token: int) -> int:
        self.children.append({})
        self.token.append(token)
        self.gain.append(0.0)
        self.phrase.append(False)
        return len(self.children) - 1

    def link(self) -> np.ndarray:
        """The next node of every token at every node, (nodes, vocab_size) int32, once all phrases are in."""
        open_words = [not self.tokenizer.ends_word(token) for token in range(self.tokenizer.vocab_size)]
        inside = self._add(-1) if any(open_words) else 0  # a word that belongs to no phrase
        nodes = len(self.children)
        following = np.zeros((nodes, len(open_words)), np.int32)
        following[[0, inside]] = np.where(open_words, inside, 0)
        self.paid, self.earned, self.whole = ([0.0] * nodes for _ in range(3))
        fail, queue = [0] * nodes, deque([0])
        while queue:
            node = queue.popleft()
            if node:
                following[node] = following[fail[node]]
                self.whole[node] = max(self.whole[fail[node]], self.paid[node] if self.phrase[node] else 0.0)
            for token, child in self.children[node].items():
                fail[child] = int(following[node, token])
                following[node, token] = child
                # What a shorter phrase would gain here must not be less because a longer one begins before it.
                self.gain[child] = max(self.gain[child], self.gain[fail[child]])
                self.paid[child] = self.paid[node] + self.gain[child]
                self.earned[child] = self.kept(node, token)
                queue.append(child)
        return following

    def kept(self, node: int, following: int | None = None) -> float:
        """What stays of `paid` when the match goes no further; None for the token after it at the end."""
        if self.whole[node] > self.earned[node] and self.tokenizer.ends_word(self.token[node], following):
            return self.whole[node]
        return self.earned[node]


class PhraseBooster(nn.Module):
    """Raises the probability of phrases given as plain text, in greedy and in beam search.

    Every token on the way to a phrase gains its weight in nats. A beam search takes back what was gained when the
    phrase breaks off, or goes on inside a longer word ("art" in "artist"), so that only whole phrases keep it. Greedy
    decoding cannot go back: there the gain only favours the next token of a phrase over others (`gain`, `following`).
    A phrase that the tokenizer cannot write is an `InputError`, not a phrase without effect.

    Args:
        tokenizer: the model's.
        phrases: texts, or pairs of text and the factor on `weight`, or a mapping from one to the other; normalised
            where the tokenizer needs it.
        weight: gain per token in nats, from 0 to 1000. Around 2 for pieces, less for characters.

    Attributes:
        tokens: of each phrase.
        following: (nodes, vocab_size) int32, the node after a token.
        gain: (nodes,) what the token gains that leads to a node, in nats.
        initial: the node before the first token.
    """

    following: Tensor
    gain: Tensor

    def __init__(self, tokenizer: Tokenizer, phrases: Phrases, weight: float = 2.0) -> None:
        super().__init__()
        self.phrases = _pairs(phrases)
        for value in (weight, *(number for _, factor in self.phrases for number in (factor, weight * factor))):
            if not 0 <= value <= LARGEST:
                raise InputError(f"the weight of a boosted phrase should be from 0 to {LARGEST:g} nats, got {value:g}")
        spaced = " " in tokenizer.pieces  # characters: words start after a token of their own
        self._trie = _Trie(tokenizer)
        self.initial = self._trie.child(0, tokenizer.pieces.index(" "), 0.0) if spaced else 0
        self.tokens = self._insert(tokenizer, weight)
        self._following = self._trie.link()
        self.register_buffer("following", torch.from_numpy(self._following), persistent=False)
        self.register_buffer("gain", torch.tensor(self._trie.gain), persistent=False)

    def _insert(self, tokenizer: Tokenizer, weight: float) -> list[list[int]]:
        """Puts the phrases into the trie; their tokens."""
        inserted, impossible = [], []
        for phrase, factor in self.phrases:
            tokens, node = _tokens(tokenizer, phrase), self.initial
            if not tokens:
                impossible.append(phrase)
                continue
            for token in tokens:
                node = self._trie.child(node, token, weight * factor)
            self._trie.phrase[node] = True
            inserted.append(tokens)
        if impossible:
            shown = ", ".join(repr(phrase) for phrase in impossible[:10])
            raise InputError(
                f"{len(impossible)} of {len(self.phrases)} phrases cannot be boosted, because the tokenizer has no "
                f"pieces for all of their characters: {shown}; write them as they are spoken"
            )
        return inserted

    def start(self) -> int:
        """Node before the first token."""
        return self.initial

    def score(self, state: int, token: int) -> tuple[float, int]:
        """What the next token adds in nats, and the node after it."""
        trie, node = self._trie, int(self._following[state, token])
        if token in trie.children[state]:
            return trie.gain[node], node
        lost = trie.paid[state] - trie.kept(state, token)
        return trie.paid[node] - trie.earned[node] - lost, node

    def finish(self, state: int) -> float:
        """Takes back what an unfinished phrase gained."""
        return self._trie.kept(state) - self._trie.paid[state]


def _pairs(phrases: Phrases) -> list[tuple[str, float]]:
    """Texts and their factors; `InputError` for anything else."""
    if isinstance(phrases, str):
        raise InputError(f"phrases are given as a list, got the text {phrases[:50]!r}")
    found = []
    for item in phrases.items() if isinstance(phrases, Mapping) else phrases:
        pair = (item, 1.0) if isinstance(item, str) else item
        fits = isinstance(pair, Sequence) and list(map(type, pair)) in ([str, float], [str, int])
        if not fits:
            raise InputError(f"a phrase is a text, or a text and the factor on its weight, got {item!r:.80}")
        text, factor = pair
        if not text.strip():
            raise InputError("a phrase has no text")
        found.append((text, float(factor)))
    return found


def _tokens(tokenizer: Tokenizer, phrase: str) -> list[int]:
    """Tokens of a phrase as it is written, else as the normaliser writes it; none where that fails too."""
    for text in (" ".join(phrase.split()), normalize(phrase)):
        try:
            tokens = tokenizer.encode(text)
        except InputError:
            continue
        if tokens:
            return tokens
    return []
