"""Stands in for torchaudio in a test environment; only melody conditioning, loudness and losses would use it."""

from __future__ import annotations

from torchaudio import transforms

__all__ = ["transforms"]
