"""Sentences as the models read them."""

from __future__ import annotations


def normalise_sentence(sentence: str) -> str:
    """Lower case, single spaces, none at the ends."""
    return " ".join(sentence.lower().split())
