"""Listening protocols: what each encoder hears of a clip.

A reward is a number about a waveform *as heard*: which part of it, at which rate, in which pieces. That is written
down under a name and a version, and stored with every result, so that two numbers are only compared when they mean
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tunejury.audio import check_sample_rate, convert_audio, window_starts
from tunejury.encoders import AudioEncoder, FrameEncoder
from tunejury.errors import InputError

# what an encoder is given at a time, so that an hour-long clip takes the memory of 160 s
WINDOWS_PER_CALL = 16
SECONDS_PER_CALL = 160.0


@dataclass(frozen=True)
class Hearing:
    """What one kind of audio encoder hears, after the clip was mixed down to mono and resampled to its rate."""

    windows: Literal["spread", "centre", "segments", "wrapped"]
    """Which parts of the clip; a clip no longer than a window is one window of its own length.

    `spread`: ceil(T / window) windows, evenly from the start to the end. `centre`: the one in the middle. `segments`:
    one after the other from the start, the last one shorter, or, where that would leave under a second, longer.
    `wrapped`: one after the other from the start, the last one filled up from the start again (a clip shorter than a
    window goes round once at most).
    """
    window_seconds: float
    pooling: Literal["mean", "frames"]
    """How the window embeddings become one: their mean, or the mean weighted by the encoder's frames in each."""
    through_rate: int | None = None
    """Hz the clip is resampled to on its way to the encoder's rate, which takes away what lies above half of it."""
    limit: bool | None = None
    """Whether samples beyond full scale are limited to it, as 16-bit files do."""


@dataclass(frozen=True)
class ListeningProtocol:
    """A named, versioned set of hearings, by encoder kind."""

    name: str
    version: int
    hearings: Mapping[str, Hearing]

    def hearing(self, kind: str) -> Hearing:
        """What an encoder of this kind hears.

        Raises:
            InputError: this protocol does not say.
        """
        if kind not in self.hearings:
            raise InputError(f"protocol {self.name!r} does not say what an encoder of kind {kind!r} hears")
        return self.hearings[kind]

    def record(self, encoders: Mapping[str, tuple[str, AudioEncoder]]) -> dict[str, Any]:
        """What is stored with a result, ready for JSON.

        Args:
            encoders: (kind, encoder) of each audio encoder by its name.
        """
        heard = {}
        for name, (kind, encoder) in encoders.items():
            hearing = {field: value for field, value in asdict(self.hearing(kind)).items() if value is not None}
            settings = getattr(encoder, "settings", {})  # of the encoder's own front end
            heard[name] = {"kind": kind, "sample_rate": encoder.sample_rate, "downmix": "mean", **hearing, **settings}
        return {"name": self.name, "version": self.version, "encoders": heard}


_WHOLE = Hearing(windows="segments", window_seconds=300.0, pooling="frames")
_WINDOWS = Hearing(windows="spread", window_seconds=10.0, pooling="mean")
# as MuQ-MuLan's own package hears a clip of any length. What the released head was trained on is not known: the
# published script for it cannot run (it asks for audio and text at once and gets a plain tensor) and would hand over
# 16 kHz audio as 24 kHz; so the `training` protocol says nothing of this encoder
_WRAPPED = Hearing(windows="wrapped", window_seconds=10.0, pooling="mean")

PROTOCOLS: Mapping[str, ListeningProtocol] = {
    # as the released scores were made
    "release": ListeningProtocol(
        name="release",
        version=1,
        hearings={
            "compact-audio": _WINDOWS,
            "patch-audio": _WINDOWS,
            "clap-audio": Hearing(windows="centre", window_seconds=10.0, pooling="mean", limit=True),
            "mert": _WHOLE,
            "muq-audio": _WRAPPED,
        },
    ),
    # CLAP hears the whole clip too
    "windows": ListeningProtocol(
        name="windows",
        version=1,
        hearings={
            "clap-audio": Hearing(windows="spread", window_seconds=10.0, pooling="mean", limit=True),
            "mert": _WHOLE,
            "muq-audio": _WRAPPED,
        },
    ),
    # as the features the released heads were trained on were made
    "training": ListeningProtocol(
        name="training",
        version=1,
        hearings={
            "clap-audio": Hearing(windows="centre", window_seconds=10.0, pooling="mean", through_rate=16_000),
            "mert": _WHOLE,
        },
    ),
}


def get_protocol(name: str) -> ListeningProtocol:
    """Look a protocol up.

    Raises:
        InputError: there is none of that name; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}, expected one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_clips(wav: Tensor, sample_rate: int) -> int:
    """The sample rate of a batch that can be heard.

    Raises:
        InputError: `wav` is no floating-point [B, C, T], has no samples or holds NaN or infinite ones, or the rate is
            none.
    """
    if not isinstance(wav, Tensor) or wav.ndim != 3 or 0 in wav.shape or not wav.is_floating_point():
        got = f"{wav.dtype} {list(wav.shape)}" if isinstance(wav, Tensor) else type(wav).__name__
        raise InputError(f"expected wav [B, C, T] of floating-point numbers with samples in it, got {got}")
    sample_rate = check_sample_rate(sample_rate)
    # one pass without a copy: a NaN or an infinity survives the sum
    if not torch.isfinite(wav.detach().sum(dtype=torch.float32)):
        raise InputError("wav holds NaN or infinite samples, expected finite ones nominally within [-1, 1]")
    return sample_rate


def hear(wav: Tensor, sample_rate: int, encoder: AudioEncoder, hearing: Hearing) -> Tensor:
    """A clip at an encoder's rate: wav [B, C, T] at `sample_rate` Hz -> [B, T'] mono, differentiable."""
    if hearing.through_rate is not None:
        wav = convert_audio(wav, sample_rate, hearing.through_rate, 1)
        sample_rate = hearing.through_rate
    wav = convert_audio(wav, sample_rate, encoder.sample_rate, 1).squeeze(-2)
    return wav.clamp(-1.0, 1.0) if hearing.limit else wav


def window_spans(num_samples: int, hearing: Hearing, sample_rate: int) -> list[tuple[int, int]]:
    """First sample and length of each window of a clip of so many samples; where windows are `wrapped`, of the clip
    followed by its own beginning.
    """
    window = round(hearing.window_seconds * sample_rate)
    if hearing.windows == "wrapped":
        end = num_samples + min(num_samples, -num_samples % window)
        return [(start, min(window, end - start)) for start in range(0, num_samples, window)]
    if hearing.windows == "spread":
        return [(start, min(window, num_samples)) for start in window_starts(num_samples, window)]
    if hearing.windows == "centre":
        return [(max(0, num_samples - window) // 2, min(window, num_samples))]
    starts = list(range(0, num_samples, window))
    if len(starts) > 1 and num_samples - starts[-1] < sample_rate:
        starts.pop()
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], num_samples], strict=True)]


def listen_windows(encoder: AudioEncoder, wav: Tensor, hearing: Hearing) -> Tensor:
    """Embed each window of clips.

    Args:
        encoder: the encoder.
        wav: [B, T] mono at the encoder's rate.
        hearing: what it hears.

    Returns:
        [B, W, encoder.dim].
    """
    embeddings = []
    spans = window_spans(wav.shape[-1], hearing, encoder.sample_rate)
    if hearing.windows == "wrapped":
        wav = torch.cat([wav, wav[:, : sum(spans[-1]) - wav.shape[-1]]], dim=-1)
    # windows of one length are embedded together; no window is padded to the length of another
    for length, group in groupby(spans, key=lambda span: span[1]):
        windows = torch.stack([wav[:, start : start + length] for start, _ in group], dim=1)  # [B, W, length]
        at_once = max(1, min(WINDOWS_PER_CALL, int(SECONDS_PER_CALL * encoder.sample_rate / length)))
        if wav.device.type == "cpu" and not encoder.batches_on_cpu:
            at_once = 1
        chunks = [encoder(chunk) for chunk in windows.flatten(0, 1).split(at_once)]
        embeddings.append(torch.cat(chunks).unflatten(0, windows.shape[:2]))
    return torch.cat(embeddings, dim=1)


def pool_windows(encoder: AudioEncoder, embeddings: Tensor, num_samples: int, hearing: Hearing) -> Tensor:
    """One embedding per clip from those of its windows: [B, W, D] of a clip of `num_samples` samples -> [B, D]."""
    if hearing.pooling == "mean" or embeddings.shape[1] == 1:
        return embeddings.mean(1)
    lengths = [length for _, length in window_spans(num_samples, hearing, encoder.sample_rate)]
    frames = embeddings.new_tensor([cast(FrameEncoder, encoder).num_frames(length) for length in lengths])
    return (embeddings * (frames / frames.sum())[:, None]).sum(1)


def listen(encoder: AudioEncoder, wav: Tensor, hearing: Hearing) -> Tensor:
    """Embed clips as a hearing says: wav [B, T] mono at the encoder's rate -> [B, encoder.dim]."""
    return pool_windows(encoder, listen_windows(encoder, wav, hearing), wav.shape[-1], hearing)
