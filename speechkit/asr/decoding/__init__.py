"""Encoder steps to tokens: greedy and beam search, phrase boosting, language models, word times."""
