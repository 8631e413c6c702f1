"""The encoders the released heads stand on, small, with weights filled without a random generator.

Golden numbers were printed by this code; `benchmarks/encoder_parity.py` holds the same code against the original
packages at equal weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tunejury.encoders.clap import WINDOW, ClapAudioEncoder, ClapTextEncoder
from tunejury.encoders.mert import MertConfig, MertEncoder
from tunejury.protocol import PROTOCOLS, listen

PROMPTS = ["a piano", "a slow piano, two drums and a piano", "x"]


def wave(sample_rate: int, seconds: float) -> Tensor:
    """[1, T]: two decaying tones, without a random generator."""
    time = torch.arange(round(sample_rate * seconds), dtype=torch.float64) / sample_rate
    first = torch.sin(2 * math.pi * 440.0 * time) * torch.exp(-(time % 0.5) * 4)
    second = torch.sin(2 * math.pi * 1333.0 * time + 1.0) * torch.exp(-(time % 0.75) * 3)
    return (0.4 * first + 0.2 * second).float()[None]


def sweep(sample_rate: int, seconds: float) -> Tensor:
    """[1, T]: a sine that rises an octave every five seconds from 60 Hz, so that every window sounds different."""
    time = torch.arange(round(sample_rate * seconds), dtype=torch.float64) / sample_rate
    phase = 2 * math.pi * 60.0 * 5.0 / math.log(2.0) * (torch.exp2(time / 5.0) - 1.0)
    return (0.5 * torch.sin(phase) * (1.0 + torch.cos(2 * math.pi * time / 0.7)) / 2).float()[None]


# CLAP audio


@pytest.mark.parametrize("seconds", [0.7, 3.0, 10.0])
def test_front_end_is_that_of_the_published_extractor(
    clap_audio: ClapAudioEncoder, noise: Callable[..., Tensor], seconds: float
) -> None:
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad"
    )
    wav = wave(48_000, seconds) + noise(0, 1, round(48_000 * seconds))
    expected = extractor(wav[0].numpy(), sampling_rate=48_000, return_tensors="pt").input_features[0]
    mel = clap_audio.front_end(wav)
    assert mel.shape == (1, 1001, 64)
    torch.testing.assert_close(mel, expected, rtol=0, atol=1e-3)  # dB


@pytest.mark.parametrize("seconds", [3.0, 10.0, 37.0])
def test_clap_audio_golden_numbers(clap_audio: ClapAudioEncoder, seconds: float) -> None:
    """Of a clip that is repeated, of one that fits, and of the middle of one that is longer."""
    with torch.no_grad():
        embedding = listen(clap_audio, sweep(48_000, seconds), PROTOCOLS["release"].hearing("clap-audio"))
    assert embedding[0, :4].tolist() == pytest.approx(CLAP_AUDIO[seconds], abs=2e-5)


def test_clap_audio_batch_equals_singles(clap_audio: ClapAudioEncoder, noise: Callable[..., Tensor]) -> None:
    clips = torch.cat([wave(48_000, 2.0), noise(0, 2, 96_000)])
    with torch.no_grad():
        together, alone = clap_audio(clips), torch.cat([clap_audio(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    assert (together[0] - together[1]).norm() > 1e-3


@pytest.mark.parametrize("shape", [(1, WINDOW + 1), (1, 0), (WINDOW,)])
def test_clap_hears_up_to_its_window(clap_audio: ClapAudioEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="480000"):
        clap_audio(torch.zeros(shape))


def test_one_sample_and_silence_are_embedded(clap_audio: ClapAudioEncoder) -> None:
    wav = torch.zeros(1, 1, requires_grad=True)
    embedding = clap_audio(wav)
    embedding.sum().backward()
    assert embedding.isfinite().all() and wav.grad is not None and wav.grad.isfinite().all()


# CLAP text


def test_tokens_are_those_of_roberta(clap_text: ClapTextEncoder, released_files: dict[str, Path]) -> None:
    from transformers import RobertaTokenizer

    tokenizer = RobertaTokenizer.from_pretrained(released_files["roberta"])
    prompts = [*PROMPTS, "Drums, 120 BPM!  naïve ♯", "piano " * 100]
    expected = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    ids, mask = clap_text.tokenize(prompts)
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"])


def test_clap_text_golden_numbers_and_padding(clap_text: ClapTextEncoder) -> None:
    with torch.no_grad():
        together, alone = clap_text(PROMPTS), torch.cat([clap_text([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert together[0, :4].tolist() == pytest.approx(CLAP_TEXT, abs=1e-4)


def test_empty_prompt_is_exactly_zeros(clap_text: ClapTextEncoder) -> None:
    embeddings = clap_text(["", "a piano", " \n"])
    assert embeddings[0].count_nonzero() == 0 and embeddings[2].count_nonzero() == 0
    assert float(embeddings[1].detach().norm()) == pytest.approx(1.0, abs=1e-5)


# MERT


def test_mert_hears_as_its_published_extractor(mert: MertEncoder) -> None:
    """Zero mean and unit variance, then HuBERT, then the mean over frames: the pieces put together here anew."""
    from transformers import Wav2Vec2FeatureExtractor

    wav = wave(24_000, 1.3) + 0.05
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=24_000, do_normalize=True)
    heard = torch.as_tensor(np.asarray(extractor(wav[0].numpy(), sampling_rate=24_000).input_values))
    with torch.no_grad():
        frames = mert.model(heard).last_hidden_state
        embedding = mert(wav)
    assert frames.shape[1] == mert.num_frames(wav.shape[-1])
    torch.testing.assert_close(embedding, frames.mean(1), rtol=0, atol=1e-4)


def test_mert_golden_numbers_and_batches(mert: MertEncoder, noise: Callable[..., Tensor]) -> None:
    clips = torch.cat([wave(24_000, 1.0), noise(0, 2, 24_000)])
    with torch.no_grad():
        together, alone = mert(clips), torch.cat([mert(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert together[0, :4].tolist() == pytest.approx(MERT[1.0], abs=1e-4)


@pytest.mark.parametrize("seconds", [3.0, 10.0, 37.0])
def test_mert_golden_numbers(mert: MertEncoder, seconds: float) -> None:
    with torch.no_grad():
        embedding = listen(mert, sweep(24_000, seconds), PROTOCOLS["release"].hearing("mert"))
    assert embedding[0, :4].tolist() == pytest.approx(MERT[seconds], abs=2e-5)


def test_frames_are_counted_as_they_come(mert: MertEncoder) -> None:
    for samples in (1, 399, 400, 719, 720, 24_000):
        heard = torch.zeros(1, max(400, samples))
        assert mert.num_frames(samples) == mert.model.feature_extractor(heard).shape[-1]
        assert mert(torch.zeros(1, samples)).isfinite().all()


def test_normalisation_follows_the_flag(mert: MertEncoder) -> None:
    plain = MertEncoder(dataclasses.replace(mert.config, do_normalize=False)).eval()
    plain.load_state_dict(mert.state_dict())
    quiet = 0.001 * wave(24_000, 0.5)
    with torch.no_grad():
        assert (mert(quiet) - mert(1000 * quiet)).abs().max() < 1e-2 < (plain(quiet) - plain(1000 * quiet)).abs().max()
    assert isinstance(mert.config, MertConfig) and mert.settings == {"do_normalize": True}


CLAP_AUDIO = {
    3.0: [0.287319, -0.082020, -0.227288, 0.328621],
    10.0: [0.286157, -0.080921, -0.227471, 0.328192],
    37.0: [0.291226, -0.085846, -0.226540, 0.330059],
}
CLAP_TEXT = [-0.355623, 0.364815, 0.064975, -0.396470]
MERT = {
    1.0: [1.310182, -0.695375, 0.138225, -0.349683],
    3.0: [1.799909, -0.775257, -0.063859, -0.531400],
    10.0: [1.853036, -0.707109, -0.254796, -0.325885],
    37.0: [1.730956, -0.704024, -0.180786, -0.354428],
}
