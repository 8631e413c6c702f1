"""Audio in and out: files to tensors and back, channels, sample rates, windows.

Everything is float32 `wav [..., C, T]`, nominally within [-1, 1], beside a `sample_rate` in Hz. Conversion is
differentiable, so the same code serves scoring a file and following a gradient into a waveform.
"""

from __future__ import annotations

import functools
import logging
import numbers
from fractions import Fraction
from pathlib import Path
from typing import Any

import julius
import numpy as np
import soundfile
import torch
from torch import Tensor

from tunejury.errors import InputError
from tunejury.files import atomic_path
from tunejury.riff import check_wav_is_whole

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MIN_SAMPLE_RATE = 1_000  # Hz; below it a clip holds nothing a music encoder was made for
MAX_SAMPLE_RATE = 768_000  # Hz; the highest rate converters are built for
READ_SAMPLES = 1 << 22  # samples of all channels decoded at a time: 16 MiB of float32
RESAMPLE_BLOCK = 1 << 20  # samples (in or out, whichever are more) resampled at a time: bounds the temporary copies
MAX_RATIO_TERM = 2_000  # largest numerator or denominator of a resampling ratio
MAX_WAV_BYTES = 4_000_000_000  # a RIFF size field has 32 bits
MAX_FRAMES_PER_BYTE = 4096  # the densest code there is: FLAC's longest block of one constant, 65,535 in 16 bytes


def load_audio(path: str | Path, channels: int | None = None) -> tuple[Tensor, int]:
    """Read a wav, flac, ogg or mp3 file.

    The file is decoded block by block, and mixed down at once when `channels` is 1, so that the memory used is that
    of the result: an hour of eight channels at 192 kHz is read as one channel without ever holding the other seven.

    Args:
        path: the file.
        channels: number of channels wanted (see `convert_channels`); None keeps the file's.

    Returns:
        wav [C, T] float32 and its sample rate in Hz.

    Raises:
        InputError: the path is missing, a folder, not audio, empty, cut short, or holds no samples or NaN or infinite
            ones.
        OSError: the file may not be read.
    """
    path = Path(path)
    _check_is_file(path)
    try:
        with soundfile.SoundFile(path) as file:
            wav = _read(file, path, channels)
            sample_rate = file.samplerate
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a suffix that means headerless samples
        raise InputError(
            f"{path} cannot be decoded as audio (expected wav, flac, ogg or mp3): {_reason(error)}"
        ) from error
    check_sample_rate(sample_rate, f"{path}: sample rate")
    return wav if channels is None else convert_channels(wav, channels), sample_rate


def audio_length(path: str | Path) -> tuple[int, int] | None:
    """Sample rate in Hz and samples per channel as a file's header has them, None for a file without a readable one.

    Compressed formats may decode to a few samples more or less.
    """
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, TypeError, OSError):
        return None
    return info.samplerate, info.frames


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected an audio file")
    if not path.exists():
        raise InputError(f"{path} does not exist, expected an audio file")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file, expected an audio file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes), expected an audio file")
    check_wav_is_whole(path)


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else "headerless samples"
    return str(text).strip().rstrip(".")


def _read(file: Any, path: Path, channels: int | None) -> Tensor:
    """Decode an open `soundfile.SoundFile` to [C, T], mixing down as it goes when one channel is wanted."""
    if file.frames <= 0:
        raise InputError(f"{path} holds no samples, or is cut short")
    size = path.stat().st_size
    if file.frames > MAX_FRAMES_PER_BYTE * size:  # memory is asked for by this number
        raise InputError(f"{path} is damaged: its header promises {file.frames} samples, the file has {size} bytes")
    kept = 1 if channels == 1 else file.channels
    try:
        samples = np.empty((kept, file.frames), dtype=np.float32)
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory: {file.frames} samples of {kept} channels") from error
    block_frames = max(1, READ_SAMPLES // file.channels)
    done = 0
    while done < file.frames:
        try:
            block = file.read(min(block_frames, file.frames - done), dtype="float32", always_2d=True)  # [frames, C]
        except soundfile.LibsndfileError as error:
            raise InputError(
                f"{path} is damaged or cut short {done / file.samplerate:.1f} s or more into it: {_reason(error)}"
            ) from error
        if len(block) == 0:
            break
        if not np.isfinite(block).all():
            raise InputError(f"{path} holds NaN or infinite samples (near {done / file.samplerate:.1f} s)")
        samples[:, done : done + len(block)] = block.mean(axis=1) if channels == 1 else block.T
        done += len(block)
    # compressed formats may announce a few frames more than they decode to; a tenth of a second is no rounding
    if done == 0 or file.frames - done > file.samplerate // 10:
        raise InputError(
            f"{path} is cut short: its header promises {file.frames} samples per channel, {done} could be decoded; "
            "copy or download it again"
        )
    return torch.from_numpy(samples[:, :done])


def save_audio(path: str | Path, wav: Tensor, sample_rate: int) -> None:
    """Write a 24-bit PCM WAV file; it appears complete or not at all.

    Args:
        path: file to write, ending in .wav.
        wav: [C, T]; samples beyond [-1, 1] are limited to it, with a warning in the log.
        sample_rate: Hz.

    Raises:
        InputError: `wav` is not a finite floating [C, T] with a sample in it, the path does not end in .wav, or the
            file would pass 4 GB.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise InputError(f"{path}: audio is written as WAV, expected a name ending in .wav")
    if wav.ndim != 2 or not wav.is_floating_point() or wav.numel() == 0:
        raise InputError(f"{path}: expected floating-point wav [C, T] to write, got {wav.dtype} {list(wav.shape)}")
    sample_rate = check_sample_rate(sample_rate)
    if wav.numel() * 3 > MAX_WAV_BYTES:
        raise InputError(f"{path}: {wav.numel() * 3} bytes are too many for one WAV file (4 GB), write shorter clips")
    samples = wav.detach().to("cpu", torch.float32)
    peak = float(samples.abs().max())
    if not np.isfinite(peak):
        raise InputError(f"{path}: the audio to write holds NaN or infinite samples")
    if peak > 1.0:
        logger.warning("%s: peak %.3f limited to full scale", path, peak)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        soundfile.write(
            file, samples.clamp(-1.0, 1.0).T.contiguous().numpy(), sample_rate, format="WAV", subtype="PCM_24"
        )


def check_sample_rate(sample_rate: int, what: str = "sample_rate") -> int:
    """Return `sample_rate` as a plain int; raise InputError unless it is a whole number of Hz that audio is kept at."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, numbers.Integral):
        raise InputError(f"{what} is {sample_rate!r}, expected a whole number of Hz")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise InputError(f"{what} is {sample_rate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz")
    return int(sample_rate)


def convert_channels(wav: Tensor, channels: int) -> Tensor:
    """Change the number of channels.

    Args:
        wav: [..., C, T].
        channels: number wanted.

    Returns:
        [..., channels, T].

    Raises:
        InputError: there is no one meaning of the change (2 channels to 6).
    """
    present = wav.shape[-2]
    # case 1: nothing to do
    if channels == present:
        return wav
    # case 2: down to mono, the mean (a tone in one of two channels comes out at half its amplitude)
    if channels == 1:
        return wav.mean(-2, keepdim=True)
    # case 3: mono to many, the same signal in each
    if present == 1 and channels > 1:
        return wav.expand(*wav.shape[:-2], channels, wav.shape[-1])
    # case 4: fewer, the first ones (front left and right lead in every common order)
    if 1 < channels < present:
        return wav[..., :channels, :]
    # case 5: more than there are
    raise InputError(f"cannot turn {present} channels into {channels}: expected 1, or at most {present}")


def convert_audio(wav: Tensor, from_rate: int, to_rate: int, to_channels: int) -> Tensor:
    """Change sample rate and number of channels, differentiably.

    Args:
        wav: [..., C, T], floating point, T >= 1.
        from_rate: Hz of `wav`.
        to_rate: Hz wanted.
        to_channels: number of channels wanted (see `convert_channels`).

    Returns:
        [..., to_channels, T'] with T' = ceil(T * to_rate / from_rate), in the dtype of `wav`.

    Raises:
        InputError: the shape, the dtype, a rate or the channel change makes no sense.
    """
    if wav.ndim < 2 or not wav.is_floating_point() or 0 in wav.shape:
        raise InputError(
            f"expected floating-point wav [..., C, T] with samples in it, got {wav.dtype} {list(wav.shape)}"
        )
    from_rate, to_rate = check_sample_rate(from_rate, "from_rate"), check_sample_rate(to_rate, "to_rate")
    if to_channels < wav.shape[-2]:  # fewer channels first, more channels last: the least to resample
        return resample(convert_channels(wav, to_channels), from_rate, to_rate)
    return convert_channels(resample(wav, from_rate, to_rate), to_channels)


def resampling_ratio(from_rate: int, to_rate: int) -> tuple[int, int]:
    """The ratio a resampler runs at, as (samples in, samples out) without a common factor.

    The filter bank holds one filter per output phase, each spanning a whole period of the input: `in * out` numbers at
    least. That is small for every pair of rates in use (44.1 to 16 kHz is 441:160), but two rates without a common
    factor (44,101 to 16,000 Hz) would ask for 700 million. Such a ratio is replaced by the nearest one whose terms
    stay within `MAX_RATIO_TERM`, less than 1 / MAX_RATIO_TERM away: under a cent of pitch, half a millisecond a second.
    """
    ratio = Fraction(to_rate, from_rate)
    if max(ratio.numerator, ratio.denominator) > MAX_RATIO_TERM:
        downwards = ratio < 1
        nearest = (ratio if downwards else 1 / ratio).limit_denominator(MAX_RATIO_TERM)
        ratio = nearest if downwards else 1 / nearest
    return ratio.denominator, ratio.numerator


@functools.lru_cache(maxsize=16)
def _resampler(samples_in: int, samples_out: int, device: torch.device, dtype: torch.dtype) -> Any:
    # kept between calls, so its filters must not be born inside a caller's inference mode: autograd could not use
    # them later
    with torch.inference_mode(False):
        return julius.ResampleFrac(samples_in, samples_out).to(device=device, dtype=dtype)


def resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Windowed-sinc resampling (J. O. Smith's algorithm, by julius), in blocks that join exactly.

    Args:
        wav: [..., T], floating point, T >= 1.
        from_rate: Hz of `wav`.
        to_rate: Hz wanted.

    Returns:
        [..., T'] with T' = ceil(T * to_rate / from_rate), so that one sample stays at least one sample.
    """
    length = -(-wav.shape[-1] * to_rate // from_rate)
    period_in, period_out = resampling_ratio(from_rate, to_rate)
    if period_in != period_out:
        resampler = _resampler(period_in, period_out, wav.device, wav.dtype)
        # whole periods of context on each side that cover the filter: what is dropped again holds all the edge effects
        context = -(-(resampler.kernel.shape[-1] + period_in) // period_in)
        periods = max(1, RESAMPLE_BLOCK // max(period_in, period_out))
        blocks = []
        for start in range(0, -(-wav.shape[-1] // period_in), periods):
            before = min(context, start)
            block = wav[..., (start - before) * period_in : (start + periods + context) * period_in]
            blocks.append(resampler(block, full=True)[..., before * period_out : (before + periods) * period_out])
        wav = torch.cat(blocks, dim=-1)
    missing = length - wav.shape[-1]
    if missing > 0:  # an approximated ratio may end early: hold the last sample, as the filter does beyond the edges
        wav = torch.cat([wav, wav[..., -1:].expand(*wav.shape[:-1], missing)], dim=-1)
    return wav[..., :length]


def window_starts(num_samples: int, window: int) -> list[int]:
    """First samples of the ceil(num_samples / window) windows spread evenly from the start of a clip to its end."""
    count = max(1, -(-num_samples // window))
    last = max(0, num_samples - window)
    return [round(i * last / max(1, count - 1)) for i in range(count)]


def split_windows(wav: Tensor, window: int) -> Tensor:
    """Cut a clip into windows that cover it all and are never padded.

    Args:
        wav: [..., T], T >= 1.
        window: samples per window, at least 1.

    Returns:
        [..., W, window] with W = ceil(T / window), neighbours overlapping where T is no multiple of it; a clip no
        longer than the window is one window of its own length, [..., 1, T].

    Raises:
        InputError: `window` is below 1 or there are no samples.
    """
    if window < 1 or wav.shape[-1] < 1:
        raise InputError(f"expected a window and a clip of at least one sample, got {window} and {wav.shape[-1]}")
    return torch.stack([wav[..., start : start + window] for start in window_starts(wav.shape[-1], window)], dim=-2)
