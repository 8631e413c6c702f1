"""Ways of spoiling a clip, each with a strength from 0 (hardly heard) to 1 (severe); 0.5 is plainly heard.

Every function takes and returns mono float32 numpy audio [T] at 16 kHz and draws what it needs from `rng`. The result
may be a little shorter than the input where playing speed changes (at most 6 %). `CORRUPTIONS` names those a judge is
trained on; `mild_change` is what must NOT count as damage.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
Corruption = Callable[[Audio, float, np.random.Generator], Audio]
SAMPLE_RATE = 16_000  # Hz


def _rms(wav: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(wav)) + 1e-10))


def _spectrum_gain(wav: Audio, gain: Callable[[Audio], Audio]) -> Audio:
    """Multiply the spectrum by `gain(frequency in Hz)`, padded so that the end does not wrap to the start."""
    size = len(wav) + 4096
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(wav, size) * gain(frequencies), size)[: len(wav)].astype(np.float32)


def change_speed(wav: Audio, cents: float) -> Audio:
    """Play faster (positive cents: higher and shorter) or slower, by exact Fourier resampling."""
    size = len(wav)
    target = round(size * 2.0 ** (-cents / 1200.0))
    spectrum = np.fft.rfft(wav)
    bins = target // 2 + 1
    spectrum = spectrum[:bins] if bins <= len(spectrum) else np.pad(spectrum, (0, bins - len(spectrum)))
    return (np.fft.irfft(spectrum, target) * (target / size)).astype(np.float32)[:size]


def _warp(wav: Audio, positions: NDArray[np.float64]) -> Audio:
    """Read the clip at fractional sample positions (linear reading of a four times oversampled copy)."""
    dense = np.fft.irfft(np.fft.rfft(wav), 4 * len(wav)) * 4
    return np.interp(positions * 4, np.arange(len(dense)), dense).astype(np.float32)


def noise(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """White, pink or brown noise, from 28 dB below the music to 2 dB below it."""
    level = _rms(wav) * 10 ** (-(28 - 26 * strength) / 20)
    slope = rng.choice([0.0, 0.0, 0.5, 1.0])
    hiss = rng.standard_normal(len(wav)).astype(np.float32)
    if slope:
        hiss = _spectrum_gain(hiss, lambda f: np.maximum(f, 40.0) ** -slope)
    return wav + level * hiss / _rms(hiss)


def hum(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """A steady buzz of 45 to 130 Hz with harmonics, half the time odd ones only, from 24 dB below the music to 3 dB."""
    time = np.arange(len(wav), dtype=np.float32) / SAMPLE_RATE
    base, falloff = rng.uniform(45, 130), rng.uniform(0.2, 1.2)
    buzz = np.zeros(len(wav), dtype=np.float32)
    step = int(rng.integers(1, 3))
    for k in range(1, int(rng.integers(2, 12)), step):
        buzz += (np.sin(2 * np.pi * (base * k * time + rng.random())) / k**falloff).astype(np.float32)
    return wav + _rms(wav) * 10 ** (-(24 - 21 * strength) / 20) * buzz / _rms(buzz)


def clipping(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Hard (or, one time in four, soft) clipping of the loudest 0.5 % to 40 % of the samples."""
    limit = float(np.quantile(np.abs(wav), 0.995 - 0.395 * strength)) + 1e-6
    if rng.random() < 0.25:
        return (limit * np.tanh(1.5 * wav / limit)).astype(np.float32)
    return np.clip(wav, -limit, limit)


def band_limit(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Low-pass from 3.5 kHz down to 500 Hz, at times also high-pass (a telephone), gentle or steep."""
    cut = 3500.0 * (500.0 / 3500.0) ** strength
    order = rng.choice([2.0, 4.0, 12.0])
    low = (0.0, 0.0, 150.0, 300.0 + 300.0 * strength)[int(rng.integers(4))]

    def gain(f: Audio) -> Audio:
        g = 1.0 / np.sqrt(1.0 + (f / cut) ** (2 * order))
        return g / np.sqrt(1.0 + (low / np.maximum(f, 1.0)) ** 8) if low else g

    return _spectrum_gain(wav, gain)


def high_pass(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """A thin sound: everything below 300 Hz to 2 kHz is taken away."""
    cut = 300.0 * (2000.0 / 300.0) ** strength
    return _spectrum_gain(wav, lambda f: 1.0 / np.sqrt(1.0 + (cut / np.maximum(f, 1.0)) ** 8))


def _cents(strength: float, rng: np.random.Generator, low: float = 12.0, high: float = 75.0) -> float:
    return float(rng.choice([-1, 1]) * (low + (high - low) * strength))


def detuned_copy(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """The clip mixed with a copy 12 to 75 cents off."""
    other = change_speed(wav, _cents(strength, rng))
    size = min(len(wav), len(other))
    return wav[:size] + float(rng.uniform(0.6, 1.0)) * other[:size]


def detuned_band(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Voices apart: what lies above (or below) a crossover is played 15 to 80 cents off the rest."""
    cut = float(np.exp(rng.uniform(np.log(250), np.log(900))))
    low = _spectrum_gain(wav, lambda f: 1.0 / (1.0 + (f / cut) ** 8))
    high = wav - low
    cents = _cents(strength, rng, 15, 80)
    low, high = (change_speed(low, cents), high) if rng.random() < 0.5 else (low, change_speed(high, cents))
    size = min(len(low), len(high))
    return low[:size] + high[:size]


def off_pitch(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """The whole clip between two keys: 20 to 50 cents from concert pitch."""
    return change_speed(wav, _cents(strength, rng, 20, 50))


def wow(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Unsteady pitch: a slow wander or a flutter, 15 to 90 cents deep."""
    rate = float(np.exp(rng.uniform(np.log(0.5), np.log(8.0))))  # Hz
    depth = (15 + 75 * strength) / 1200 * np.log(2)
    time = np.arange(len(wav)) / SAMPLE_RATE
    shift = depth / (2 * np.pi * rate) * np.sin(2 * np.pi * (rate * time + rng.random()))  # s
    return _warp(wav, np.clip((time + shift) * SAMPLE_RATE, 0, len(wav) - 1))


def drop_outs(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Holes of 20 to 400 ms, 6 % to 50 % of the time, with edges of 0 to 5 ms."""
    gate = np.ones(len(wav), dtype=np.float32)
    share, done = 0.06 + 0.44 * strength, 0.0
    longest = rng.uniform(0.08, 0.4)
    while done < share * len(wav):
        size = int(rng.uniform(0.02, longest) * SAMPLE_RATE)
        start = int(rng.integers(0, max(1, len(wav) - size)))
        gate[start : start + size] = 0.0
        done += size
    edge = int(rng.choice([1, 16, 80]))
    return wav * np.convolve(gate, np.full(edge, 1 / edge, dtype=np.float32), mode="same")[: len(wav)]


def silence(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """One gap over 20 % to all of the clip, now and then filled with a very faint hiss."""
    size = min(len(wav), int(len(wav) * (0.2 + 0.8 * strength)))
    start = int(rng.choice([0, len(wav) - size, rng.integers(0, len(wav) - size + 1)]))
    out = wav.copy()
    out[start : start + size] = 0.0
    hiss = 10 ** rng.uniform(-5, -3.5) * rng.standard_normal(len(wav)) if rng.random() < 0.3 else 0.0
    return (out + hiss).astype(np.float32)


def quantization(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Few steps: 7 down to 2.5 bits of the clip's own peak."""
    step = float(np.abs(wav).max() + 1e-6) / 2 ** (6.0 - 4.5 * strength)
    return (np.round(wav / step) * step).astype(np.float32)


def decimation(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Samples held without a filter (aliasing): 1 of 2 to 1 of 10 kept."""
    keep = 2 + round(8 * strength)
    return np.repeat(wav[::keep], keep)[: len(wav)].astype(np.float32)


def reverb_mud(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Smeared by a dense decaying tail of 0.6 to 4 s, wetter as it grows."""
    seconds = 0.6 + 3.4 * strength
    tail = rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    tail *= np.exp(-np.linspace(0, 6.9, len(tail))).astype(np.float32)
    size = len(wav) + len(tail)
    wet = np.fft.irfft(np.fft.rfft(wav, size) * np.fft.rfft(tail, size), size)[: len(wav)].astype(np.float32)
    mix = 0.45 + 0.5 * strength
    return (1 - mix) * wav + mix * wet * (_rms(wav) / _rms(wet))


def codec(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Spectral holes and wrong phases, as a starved codec or a poor generator makes them."""
    window = np.hanning(1024).astype(np.float32)
    hop = 256
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, 1024), 1024)[::hop]
    spectrum = np.fft.rfft(frames * window)
    size = np.abs(spectrum)
    floor = np.quantile(size, 0.25 + 0.6 * strength, axis=1, keepdims=True)
    spectrum = spectrum * (size > floor * rng.uniform(0.5, 1.5, (len(frames), 1)))
    if rng.random() < 0.5:
        spectrum = spectrum * np.exp(1j * rng.normal(0, 0.3 + 1.2 * strength, spectrum.shape))
    pieces = np.fft.irfft(spectrum).astype(np.float32) * window
    out = np.zeros(len(wav) + 4096, dtype=np.float32)
    for i, piece in enumerate(pieces):
        out[i * hop : i * hop + 1024] += piece
    return out[1024 : 1024 + len(wav)] / 1.5


def clicks(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Crackle: 1 to 30 clicks a second."""
    count = max(1, int(len(wav) / SAMPLE_RATE * (1 + 29 * strength)))
    out = wav.copy()
    level = 4 * _rms(wav)
    out[rng.integers(0, len(wav), count)] += (level * rng.standard_normal(count)).astype(np.float32)
    return out


def shuffled(wav: Audio, strength: float, rng: np.random.Generator) -> Audio:
    """Cut into pieces of 1 s down to 60 ms that are played in a random order."""
    size = int(SAMPLE_RATE * 0.06**strength)
    pieces = [wav[i : i + size] for i in range(0, len(wav), size)]
    return np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])


CORRUPTIONS: dict[str, Corruption] = {
    f.__name__: f
    for f in (
        noise, hum, clipping, band_limit, high_pass, detuned_copy, detuned_band, off_pitch, wow, drop_outs, silence,
        quantization, decimation, reverb_mud, codec, clicks, shuffled,
    )
}  # fmt: skip


def mild_change(wav: Audio, rng: np.random.Generator) -> Audio:
    """A change that leaves the music as good as it was: level, a slight tilt, a low-pass above 5 kHz, faint noise.

    Clips from a generator pass a codec that costs a little treble; without this the judge would only notice that.
    """
    if rng.random() < 0.5:
        cut = float(rng.uniform(5000, 8000))
        tilt = float(rng.normal(0, 0.08))
        wav = _spectrum_gain(wav, lambda f: (np.maximum(f, 60.0) / 1000.0) ** tilt / np.sqrt(1.0 + (f / cut) ** 12))
    if rng.random() < 0.3:
        wav = wav + _rms(wav) * 10 ** (-rng.uniform(38, 60) / 20) * rng.standard_normal(len(wav)).astype(np.float32)
    return (wav * 10 ** (rng.uniform(-12, 6) / 20)).astype(np.float32)
