"""How sentences are normalised in training and inference. Separate from frames, which need PyTorch."""

from __future__ import annotations


def normalise_sentence(sentence: str) -> str:
    """Lower case, single spaces, none at the ends. The published models are trained on such sentences."""
    return " ".join(sentence.lower().split())
