"""SpectralCodec: lengths, normalisation, the inverse of its transform, gradients, saving."""

from __future__ import annotations

import pytest
import torch

from alignment import SpectralCodec

SMALL = {
    "width": 16,
    "latent_dim": 4,
    "encoder_depths": (1, 1),
    "decoder_depths": (1, 1),
    "n_fft": 256,
    "hop_length": 64,
}


def build(**changes: object) -> SpectralCodec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = SpectralCodec(**{**SMALL, **changes}).eval()
        if codec.decoder_oscillators is not None:  # to be heard, which new ones hardly are
            torch.nn.init.normal_(codec.decoder_oscillators.log_amplitude.weight, std=0.3)
            torch.nn.init.constant_(codec.decoder_oscillators.log_amplitude.bias, -3.0)
        return codec


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [1, 63, 64, 1000, 4096])
def test_latents_cover_the_clip(stride, length):
    codec = build(stride=stride)
    latents = codec.encode(torch.zeros(2, 1, length)).latents
    frames = -(-length // codec.downsampling_ratio)
    assert latents.shape == (2, 4, frames)
    assert codec.decode(latents).sample.shape == (2, 1, frames * codec.downsampling_ratio)


def test_inverse_stft_inverts_the_encoders_frames():
    codec = build()
    wav = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(wav, (96, 96))
    spectrum = torch.stft(padded, 256, 64, window=codec.window, center=False, return_complex=True)
    frames = torch.fft.irfft(spectrum, 256, dim=1)
    assert (codec._overlap_add(frames) - wav).abs().max() < 1e-5


def test_normalisation_is_undone_by_decode():
    codec, shifted = build(), build()
    shifted.latent_mean += 0.7
    shifted.latent_std *= 2.0
    wav = torch.randn(1, 1, 2048, generator=torch.Generator().manual_seed(0)) * 0.1
    plain, normalised = codec.encode(wav).latents, shifted.encode(wav).latents
    assert torch.allclose(normalised, (plain - 0.7) / 2, atol=1e-5)
    assert torch.allclose(shifted.decode(normalised).sample, codec.decode(plain).sample, atol=1e-5)


@pytest.mark.parametrize("oscillators", [0, 12])
def test_gradient_to_latents_matches_finite_differences(oscillators):
    codec = build(oscillators_per_octave=oscillators).double()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 1, 1024, generator=generator, dtype=torch.float64)
    (codec.decode(latents).sample * weights).sum().backward()
    direction = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        ends = [(codec.decode(latents + sign * step * direction).sample * weights).sum() for sign in (1, -1)]
    numeric = (ends[0] - ends[1]) / (2 * step)
    assert torch.isclose(numeric, (latents.grad * direction).sum(), rtol=1e-5)


def test_silence_and_full_scale_give_finite_gradients():
    codec = build()
    for level in (0.0, 1.0):
        wav = torch.full((1, 1, 2048), level, requires_grad=True)
        codec.encode(wav).latents.square().sum().backward()
        assert wav.grad.isfinite().all()


def test_stereo_is_refused():
    with pytest.raises(ValueError, match="mono"):
        build().encode(torch.zeros(1, 2, 1000))


@pytest.mark.parametrize("oscillators", [0, 12])
def test_saved_and_loaded_codec_is_the_same(tmp_path, oscillators):
    codec = build(oscillators_per_octave=oscillators)
    codec.latent_mean += 0.3
    codec.save_pretrained(tmp_path)
    loaded = SpectralCodec.from_pretrained(tmp_path).eval()
    wav = torch.randn(1, 1, 2048, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(wav), codec(wav)) and torch.equal(loaded.encode(wav).latents, codec.encode(wav).latents)


@pytest.mark.parametrize("oscillators", [0, 12])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_makes_nearly_the_same_clip(dtype, oscillators):
    latents = torch.randn(1, 4, 20, generator=torch.Generator().manual_seed(0))
    expected = build(oscillators_per_octave=oscillators).decode(latents).sample
    codec = build(oscillators_per_octave=oscillators).to(dtype)
    wav = codec.decode(latents.to(dtype)).sample
    assert wav.dtype == torch.float32
    assert torch.corrcoef(torch.stack([wav.flatten(), expected.flatten()]))[0, 1] > 0.99
    assert codec.encode(wav.to(dtype)).latents.dtype == dtype
