"""Controls as rewards: how closely a clip follows the loudness curve or the melody of a reference clip.

DITTO's own objectives (arXiv 2401.12179, section 4), for any duration and sample rate. Each is a `Reward`, made from a
reference, so that it can be optimised alone or in a weighted sum with a judge. Prompts are not listened to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from alignment.errors import InputError

FRAME_SECONDS, HOP_SECONDS = 0.2, 0.05  # of the loudness curve
SMOOTHING_SECONDS = 0.5  # the curve follows phrases, not beats
SILENCE_DB = -60.0  # what is below is as silent as silence
UNIT_DB = 10.0  # a clip that is off by so much everywhere has the reward -1
MELODY_WINDOW, MELODY_HOP = 0.4, 0.1  # s; a semitone is wider than the window's resolution from about 130 Hz on
LOWEST, HIGHEST = 130.0, 2_100.0  # Hz; where melodies are
QUIET = 0.05  # of the loudest moment's magnitude; below it the reference has no melody


def loudness_curve(wav: Tensor, sample_rate: int) -> Tensor:
    """Level over time, in dB of full scale: wav [B, C, T] -> [B, ceil(T / hop)], hop 0.05 s, smoothed over 0.5 s."""
    frame, hop = max(1, round(FRAME_SECONDS * sample_rate)), max(1, round(HOP_SECONDS * sample_rate))
    power = wav.float().square().mean(dim=1, keepdim=True)  # [B, 1, T]
    count = -(-power.shape[-1] // hop)
    left = (frame - hop) // 2
    padded = F.pad(power, (left, max(0, (count - 1) * hop + frame - left - power.shape[-1])))
    held = F.pad(torch.ones_like(power[:1]), (left, padded.shape[-1] - left - power.shape[-1]))
    mean = F.avg_pool1d(padded, frame, hop) / F.avg_pool1d(held, frame, hop)  # of the samples that are there
    level = 10 * (mean + 10 ** (SILENCE_DB / 10)).log10()
    width = 2 * round(SMOOTHING_SECONDS / HOP_SECONDS / 2) + 1
    window = torch.hann_window(width + 2, periodic=False, device=wav.device)[1:-1]
    window = (window / window.sum())[None, None]
    return F.conv1d(F.pad(level, (width // 2, width // 2), mode="replicate"), window)[:, 0]


def chroma(wav: Tensor, sample_rate: int) -> Tensor:
    """Magnitude in each of the 12 pitch classes (C first) over time: wav [B, C, T] -> [B, 12, frames], hop 0.1 s."""
    size, hop = round(MELODY_WINDOW * sample_rate), round(MELODY_HOP * sample_rate)
    mono = F.pad(wav.float().mean(dim=1), (0, max(0, size - wav.shape[-1])))
    spectrum = torch.stft(mono, size, hop, window=torch.hann_window(size, device=wav.device), return_complex=True)
    # the floor keeps the gradient of the magnitude finite in silence
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()
    frequencies = torch.linspace(0, sample_rate / 2, magnitude.shape[1], device=wav.device)
    used = (frequencies >= LOWEST) & (frequencies <= HIGHEST)
    pitch = 69 + 12 * (frequencies[used] / 440).log2()  # as MIDI counts
    off = (pitch[:, None] - torch.arange(12, device=wav.device) + 6) % 12 - 6  # semitones from the class, -6 to 6
    weights = torch.exp(-0.5 * (off / 0.35).square())
    return torch.einsum("bft,fc->bct", magnitude[:, used], weights)


class IntensityControl:
    """Follow a loudness curve: minus the mean square by which the clip's differs from it, in units of 10 dB.

    The reference's curve is stretched to the length of the clip: it is a shape over time, such as a crescendo.

    Args:
        reference: wav [C, T].
        sample_rate: Hz.

    Raises:
        InputError: the reference has no samples.
    """

    def __init__(self, reference: Tensor, sample_rate: int) -> None:
        _check(reference)
        self.target = loudness_curve(reference[None], sample_rate)  # [1, frames]

    def __call__(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        """wav [B, C, T] -> [B], at most 0."""
        curve = loudness_curve(wav, sample_rate)
        target = F.interpolate(self.target[None], curve.shape[-1], mode="linear", align_corners=True)[0]
        return -((curve - target.to(curve.device)) / UNIT_DB).square().mean(dim=1)


class MelodyControl:
    """Play a melody: the mean log-probability, over the reference's frames that sound, of its strongest pitch class
    in the clip's chroma, above that of chance.

    Time runs alike in both; a reference of another length counts as far as both go.

    Args:
        reference: wav [C, T].
        sample_rate: Hz, at least 500.

    Raises:
        InputError: the reference has no samples, or nothing in it sounds between 130 and 2100 Hz.
    """

    def __init__(self, reference: Tensor, sample_rate: int) -> None:
        _check(reference)
        heard = chroma(reference[None], sample_rate)[0]
        strongest, self.classes = heard.max(dim=0)  # [frames]
        self.sounds = strongest > max(QUIET * float(strongest.max()), 1e-3)
        if not self.sounds.any():
            raise InputError("the reference of a melody is silent between 130 and 2100 Hz; give a clip with a melody")

    def __call__(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        """wav [B, C, T] -> [B], 0 for chroma as flat as noise, at most log 12."""
        heard = chroma(wav, sample_rate)
        count = min(heard.shape[-1], len(self.classes))
        share = heard[..., :count] / heard[..., :count].sum(dim=1, keepdim=True)
        classes = self.classes[:count].to(wav.device).expand(len(wav), 1, count)
        sounds = self.sounds[:count].to(share)
        gained = (12 * share.gather(1, classes)[:, 0] + 1e-6).log()
        return (gained * sounds).sum(dim=1) / sounds.sum().clamp_min(1)


def _check(reference: Tensor) -> None:
    if reference.ndim != 2 or 0 in reference.shape:
        raise InputError(f"expected a reference clip [C, T] with samples in it, got {list(reference.shape)}")
