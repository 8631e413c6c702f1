"""Stands in for spacy in a test environment: words between spaces, for the tokenizer of audiocraft's debug model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    text: str
    is_stop: bool = False

    @property
    def lemma_(self) -> str:
        return self.text.lower()


def load(language: str) -> Callable[[str], list[Word]]:
    return lambda text: [Word(word) for word in text.split()]
