"""The encoders of the shipped judges, with fresh weights: what holds for any weights."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from tunejury.encoders.compact import (
    CompactAudioConfig,
    CompactAudioEncoder,
    CompactTextConfig,
    CompactTextEncoder,
    split_words,
)
from tunejury.encoders.patch_audio import PatchAudioConfig, PatchAudioEncoder

PROMPTS = ["A fast piano, no drums, 120 BPM", "drums", "", "slow orgel-like zzzyx", "  ", "café – 日本の音楽", "93.5"]


def small_audio_config() -> CompactAudioConfig:
    return CompactAudioConfig(
        dim=16, mel_channels=(4, 4, 8), mel_width=8, pitch_channels=(4, 4, 4), pitch_width=8
    )  # the front end at its real size


def small_patch_config() -> PatchAudioConfig:
    return PatchAudioConfig(dim=16, hidden=16, shapes=4, width=12, layers=2, heads=2)


def make_audio(kind: str) -> CompactAudioEncoder | PatchAudioEncoder:
    """A small encoder of either judge, in evaluation mode."""
    torch.manual_seed(0)
    if kind == "compact":
        return CompactAudioEncoder(small_audio_config()).eval()
    return PatchAudioEncoder(small_patch_config()).eval()


@pytest.fixture(scope="module", params=["compact", "patch"])
def audio(request: pytest.FixtureRequest) -> CompactAudioEncoder | PatchAudioEncoder:
    return make_audio(request.param)


@pytest.fixture(scope="module")
def compact() -> CompactAudioEncoder:
    encoder = make_audio("compact")
    assert isinstance(encoder, CompactAudioEncoder)
    return encoder


@pytest.fixture(scope="module")
def patch() -> PatchAudioEncoder:
    encoder = make_audio("patch")
    assert isinstance(encoder, PatchAudioEncoder)
    return encoder


@pytest.fixture(scope="module")
def text() -> CompactTextEncoder:
    torch.manual_seed(0)
    return CompactTextEncoder(CompactTextConfig(dim=16, vocabulary=("drums", "fast", "no", "piano"))).eval()


def tone(frequency: float, samples: int = 16_000, dtype: torch.dtype = torch.float32) -> Tensor:
    """[1, samples] at 16 kHz."""
    time = torch.arange(samples, dtype=torch.float64) / 16_000
    return (0.3 * torch.sin(2 * torch.pi * frequency * time)).to(dtype)[None]


@pytest.mark.parametrize("samples", [1, 2, 319, 1024, 5000, 48_001])
def test_audio_of_any_length_has_a_finite_embedding_and_gradient(
    audio: CompactAudioEncoder | PatchAudioEncoder, samples: int
) -> None:
    wav = torch.randn(2, samples, generator=torch.Generator().manual_seed(samples)).requires_grad_()
    embedding = audio(wav)
    (gradient,) = torch.autograd.grad(embedding.square().sum(), wav)
    assert embedding.shape == (2, audio.dim)
    assert torch.isfinite(embedding).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(16_000,), (1, 1, 16_000), (2, 0)])
def test_other_shapes_are_refused(audio: CompactAudioEncoder | PatchAudioEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        audio(torch.zeros(shape))


def test_audio_batch_equals_singles(audio: CompactAudioEncoder | PatchAudioEncoder) -> None:
    wav = torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 0, 5)[:, None]
    with torch.no_grad():
        together, alone = audio(wav), torch.cat([audio(row[None]) for row in wav])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["compact", "patch"])
def test_audio_gradient_matches_finite_differences(kind: str) -> None:
    encoder = make_audio(kind).double()
    wav = (tone(440, 9000, torch.float64) + 0.05 * torch.randn(1, 9000).double()).requires_grad_()
    weights = torch.randn(1, encoder.dim, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((encoder(wav) * weights).sum(), wav)
    for seed in range(3):
        direction = torch.randn(wav.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            ahead, behind = ((encoder(wav + step * direction) * weights).sum() for step in (1e-6, -1e-6))
        assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-4)


def test_silence_and_the_quietest_sounds_have_finite_gradients(
    audio: CompactAudioEncoder | PatchAudioEncoder,
) -> None:
    for level in (0.0, 1e-12, 1e-5):
        wav = (level * tone(440)).requires_grad_()
        (gradient,) = torch.autograd.grad(audio(wav).sum(), wav)
        assert torch.isfinite(gradient).all()


def test_loudness_does_not_matter_but_silence_does(audio: CompactAudioEncoder | PatchAudioEncoder) -> None:
    with torch.no_grad():
        quiet, loud, silent = (audio(level * tone(440)) for level in (0.3, 1.0, 0.0))
    assert float((quiet - loud).abs().max()) < 0.01 * float((silent - loud).abs().max())


def test_every_sample_is_heard(audio: CompactAudioEncoder | PatchAudioEncoder) -> None:
    wav = tone(440, 30_000).requires_grad_()
    (gradient,) = torch.autograd.grad(audio(wav).square().sum(), wav)
    assert bool((gradient.unfold(-1, 500, 500).abs().amax(-1) > 0).all())


def test_the_fine_spectrogram_separates_twenty_cents_and_centres_tempered_pitches(compact: CompactAudioEncoder) -> None:
    for cents, place in ((-40, 0), (-20, 1), (0, 2), (20, 3), (40, 4)):
        _, fine = compact.spectrograms(tone(880.0 * 2 ** (cents / 1200)))
        peak = int(fine.mean(-1).argmax())
        assert peak % 5 == place
        assert compact.config.pitch_lowest + peak // 5 == 81  # A5


def pulse() -> Tensor:
    """[1, 96000] at 16 kHz: six seconds of clicks, two a second."""
    wav = torch.zeros(1, 96_000)
    for beat in range(0, 96_000, 8000):
        wav[0, beat : beat + 800] = tone(1000, 800)[0]
    return wav


def test_a_pulse_shows_at_its_period_in_the_onset_autocorrelation(compact: CompactAudioEncoder) -> None:
    bands, lags = compact.config.onset_bands, compact.config.onset_lags
    correlation = compact.statistics(pulse())[0, -bands * lags :].reshape(bands, lags).mean(0)
    assert int(correlation[10:40].argmax()) + 10 + 1 == 25  # hops of 20 ms


def test_a_pulse_shows_at_its_rate_in_the_modulation_spectrum(patch: PatchAudioEncoder) -> None:
    fast, _ = patch.spectra(pulse())
    strength = patch.rhythm(fast).unflatten(1, (patch.config.rhythm_bands, -1)).mean((0, 1))
    octaves = torch.linspace(0.0, 5.0, patch.config.rhythms)  # from 0.5 Hz
    # clicks have overtones as strong as their rate of 2 Hz, but nothing lies between or below
    assert float(octaves[strength[:24].argmax()]) == pytest.approx(2.0, abs=0.06)
    assert float(strength[:24].max()) > 3 * float(strength[:16].max())


def test_tuning_is_the_place_in_the_semitone_and_its_certainty(patch: PatchAudioEncoder) -> None:
    def heard(*cents: float) -> tuple[float, float]:
        mixed = torch.stack([tone(880.0 * 2 ** (c / 1200)) for c in cents]).mean(0)
        _, tonal = patch.spectra(mixed)
        moments = patch.tuning(tonal)[0]
        cosine, sine = moments[4:6].tolist()  # of the middle band
        return math.degrees(math.atan2(sine, cosine)) / 3.6, float(moments[-4])  # a turn is 100 cents

    for cents in (-30.0, 0.0, 30.0, 45.0):
        assert heard(cents)[0] == pytest.approx(cents, abs=4.0)
    assert heard(0.0, 40.0)[1] < 0.9 * heard(0.0)[1]


def test_empty_prompts_are_exactly_zeros_and_others_are_not(text: CompactTextEncoder) -> None:
    embedding = text(PROMPTS).detach()
    assert embedding.shape == (len(PROMPTS), text.dim)
    for prompt, row in zip(PROMPTS, embedding, strict=True):
        if prompt.strip():
            assert float(row.square().mean()) == pytest.approx(1.0, rel=1e-3)
        else:
            assert (row == 0).all()
    assert (text(["", " \n"]) == 0).all() and text([]).shape == (0, text.dim)


def test_a_prompt_without_a_letter_or_digit_is_no_prompt(text: CompactTextEncoder) -> None:
    assert (text(["...", "日本"]) == 0).all()


def test_text_batch_equals_singles(text: CompactTextEncoder) -> None:
    prompts = [*PROMPTS, "a very long prompt " * 30]
    torch.testing.assert_close(text(prompts), torch.cat([text([p]) for p in prompts]), rtol=0, atol=1e-5)


def test_case_and_punctuation_do_not_matter_but_order_negation_and_numbers_do(text: CompactTextEncoder) -> None:
    def distance(a: str, b: str) -> float:
        return float((text([a]) - text([b])).square().mean().sqrt())

    assert distance("Fast piano, no drums!", "fast PIANO no drums") < 1e-5
    assert distance("no drums fast piano", "drums no fast piano") > 1e-3
    assert distance("drums", "no drums") > 1e-3
    # numbers are a scale: neighbours are nearer than strangers
    assert distance("120 bpm", "121 bpm") < distance("120 bpm", "60 bpm")


def test_unknown_words_and_misspellings_mean_something(text: CompactTextEncoder) -> None:
    unknown = text(["vibraslap", "vibraslaps", "ondes"])
    assert float((unknown[0] - unknown[1]).square().mean()) < float((unknown[0] - unknown[2]).square().mean())


def test_words_are_split_as_people_write_them() -> None:
    assert split_words("Lo-fi beat, 92.5 BPM (don’t rush)!") == ["lo", "fi", "beat", "92.5", "bpm", "don't", "rush"]


def test_no_prompt_breaks_it(text: CompactTextEncoder) -> None:
    strange = ["9" * 400, "a" * 10_000, "\x00", "#", "1e309 0 0.0", "word " * 5000, "٣"]
    assert torch.isfinite(text(strange)).all()


def test_the_same_prompt_is_the_same_vector_in_another_process(text: CompactTextEncoder) -> None:
    prompt = "fast marimba without any drums at 97 bpm"
    program = (
        "import json, torch\n"
        "from tunejury.encoders.compact import CompactTextConfig, CompactTextEncoder\n"
        "torch.manual_seed(0)\n"
        f"config = CompactTextConfig(**json.loads({json.dumps(json.dumps(asdict(text.config)))}))\n"
        f"print(json.dumps(CompactTextEncoder(config).eval()([{prompt!r}])[0].tolist()))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(run.stdout)), text([prompt])[0].detach(), rtol=0, atol=1e-6)


def test_a_config_survives_json() -> None:
    audio, text, patch = small_audio_config(), CompactTextConfig(vocabulary=("a",)), small_patch_config()
    assert CompactAudioConfig(**json.loads(json.dumps(asdict(audio)))) == audio
    assert PatchAudioConfig(**json.loads(json.dumps(asdict(patch)))) == patch
    assert CompactTextConfig(**json.loads(json.dumps(asdict(text)))) == text
