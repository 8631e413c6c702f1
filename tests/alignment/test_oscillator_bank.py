"""The oscillators of SpectralCodec's decoder: a tone that stands still is one, and goes on where a crop begins."""

from __future__ import annotations

import pytest
import torch

from alignment import SpectralCodec
from alignment.oscillator_bank import LOWEST, SILENT, OscillatorBank

PER_OCTAVE = 12


def codec_with(loud: tuple[int, ...]) -> SpectralCodec:
    """Its spectra are silent, and so are all oscillators but the numbers in `loud`."""
    torch.manual_seed(0)
    codec = SpectralCodec(width=16, latent_dim=4, encoder_depths=(1, 1), decoder_depths=(1, 1),
                          oscillators_per_octave=PER_OCTAVE).eval()  # fmt: skip
    assert codec.decoder_oscillators is not None
    with torch.no_grad():
        codec.decoder_out.weight.zero_()
        codec.decoder_out.bias.fill_(-20.0)
        codec.decoder_oscillators.log_amplitude.weight.zero_()
        codec.decoder_oscillators.log_amplitude.bias.fill_(-30.0)
        codec.decoder_oscillators.log_amplitude.bias[list(loud)] = -2.0
    return codec


@pytest.mark.parametrize("number", [24, 45, 80])
@torch.no_grad()
def test_equal_frames_give_a_steady_tone_at_its_pitch(number):
    wav = codec_with((number,)).decode(torch.zeros(1, 4, 125)).sample[0, 0]
    frequency = LOWEST * 2 ** (number / PER_OCTAVE)
    spectrum = torch.fft.rfft(wav[:16_000] * torch.hann_window(16_000)).abs()
    assert abs(int(spectrum.argmax()) - frequency) <= 1  # a bin is 1 Hz
    period = 16_000 / frequency
    inner = wav[1000:-1000].unfold(0, round(20 * period), round(20 * period)).square().mean(dim=1)
    assert inner.max() / inner.min() < 1.05


@torch.no_grad()
def test_a_crop_goes_on_where_it_begins():
    codec = codec_with((30, 61))
    whole = codec.raw_decode(torch.zeros(1, 4, 60))
    part = codec.raw_decode(torch.zeros(2, 4, 20), torch.tensor([0, 33]))
    inner = slice(1024, 19 * 256)  # the outermost frames have fewer neighbours to be added to
    for row, first in enumerate((0, 33)):
        expected = whole[0, 0, first * 256 :][: 20 * 256]
        assert torch.allclose(part[row, 0, inner], expected[inner], atol=1e-5)


@torch.no_grad()
def test_new_oscillators_are_all_but_silent_and_below_half_the_sample_rate():
    bank = OscillatorBank(16, 24, sample_rate=8000, n_fft=256, hop_length=64)
    assert max(bank._cycles) < 0.5
    frames = bank(torch.zeros(1, 5, 16), torch.hann_window(256))
    assert frames.shape == (1, 5, 256)
    assert frames.abs().max() < len(bank._cycles) * torch.exp(torch.tensor(SILENT))
