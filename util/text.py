"""Normalise sentences for training and inference. Imports no PyTorch, so light commands can use it."""

from __future__ import annotations


def normalise_sentence(sentence: str) -> str:
    """Lower case, single spaces, none at the ends. The published models are trained on such sentences."""
    return " ".join(sentence.lower().split())
