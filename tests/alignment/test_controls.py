"""Controls and sums of rewards: what they prefer, and that a clip can climb towards it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignment.controls import IntensityControl, MelodyControl, chroma, loudness_curve
from alignment.errors import InputError
from alignment.objectives import WeightedSum, parse_rewards


def tones(notes: list[int], rate: int = 16_000, seconds: float = 0.6, level: float = 0.3) -> Tensor:
    """[1, T]: MIDI notes one after the other, with overtones."""
    time = torch.arange(int(seconds * rate)) / rate
    clips = [
        sum(level / k * torch.sin(2 * math.pi * k * 440 * 2 ** ((note - 69) / 12) * time) for k in (1, 2, 3))
        for note in notes
    ]
    return torch.cat(clips)[None]  # type: ignore[arg-type]


MELODY = [60, 64, 67, 62]


def test_chroma_finds_the_note_in_any_octave_and_at_any_rate() -> None:
    for rate in (8_000, 44_100):
        for note in (50, 57, 66, 83):
            strongest = chroma(tones([note], rate)[None], rate)[0].argmax(dim=0)
            assert (strongest == note % 12).all()


def test_loudness_curve_has_the_level_of_steady_sound_and_follows_a_change() -> None:
    time = torch.arange(32_000) / 16_000
    sine = torch.sin(2 * math.pi * 440 * time)[None, None]
    for level in (0.5, 0.05):
        assert loudness_curve(level * sine, 16_000) == pytest.approx(
            torch.full((1, 40), 20 * math.log10(level) - 3.01), abs=0.1
        )
    assert loudness_curve(0 * sine, 16_000) == pytest.approx(torch.full((1, 40), -60.0), abs=1e-3)
    rising = loudness_curve(sine * torch.linspace(0.01, 1, 32_000), 16_000)[0]
    assert (rising.diff() > -1e-3).all() and rising[-1] - rising[0] > 12


def test_a_melody_prefers_itself() -> None:
    control = MelodyControl(tones(MELODY), 16_000)
    clips = torch.stack([tones(MELODY), tones([n + 12 for n in MELODY]), tones([n + 1 for n in MELODY])])
    noise = torch.randn(1, 1, clips.shape[-1], generator=torch.Generator().manual_seed(0))
    itself, octave, transposed, noisy = control(torch.cat([clips, noise]), 16_000, [""] * 4).tolist()
    assert min(itself, octave) > 1 > 0.3 > abs(noisy) and transposed < -0.5
    assert float(control(tones(MELODY, 44_100)[None], 44_100, [""])) == pytest.approx(itself, abs=0.1)
    half = clips[:1, :, : clips.shape[-1] // 2]
    assert float(control(half, 16_000, [""])) == pytest.approx(itself, abs=0.3)


def test_an_intensity_curve_prefers_its_shape_at_any_length() -> None:
    ramp = torch.linspace(0.02, 1, 48_000)
    sound = 0.3 * torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    control = IntensityControl(sound * ramp, 16_000)
    rising, falling, steady = (sound * shape for shape in (ramp, ramp.flip(0), ramp.mean()))
    values = control(torch.stack([rising, steady, falling]), 16_000, [""] * 3).tolist()
    assert values[0] == pytest.approx(0, abs=1e-6) and values[0] > values[1] > values[2]
    assert float(control(rising[None, :, ::2], 8_000, [""])) > -0.01
    longer = 0.3 * torch.randn(1, 80_000) * torch.linspace(0.02, 1, 80_000)
    assert float(control(longer[None], 16_000, [""])) > -0.05


@pytest.mark.parametrize("kind", [MelodyControl, IntensityControl])
def test_a_batch_is_its_clips_and_silence_has_a_gradient(kind: type) -> None:
    control = kind(tones(MELODY), 16_000)
    clips = torch.stack([tones(MELODY).flip(1), torch.zeros(1, 38_400)]).requires_grad_()
    together = control(clips, 16_000, ["", ""])
    assert together.shape == (2,)
    alone = [float(control(clip[None], 16_000, [""])) for clip in clips.detach()]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    together.sum().backward()
    assert clips.grad.isfinite().all() and clips.grad[0].abs().max() > 0


@pytest.mark.parametrize("kind", [MelodyControl, IntensityControl])
def test_a_clip_climbs_towards_the_reference(kind: type) -> None:
    control = kind(tones(MELODY) * torch.linspace(0.01, 1, 38_400), 16_000)
    clip = (0.05 * torch.randn(1, 1, 38_400, generator=torch.Generator().manual_seed(1))).requires_grad_()
    optimizer = torch.optim.Adam([clip], lr=0.01)
    values = []
    for _ in range(15):
        loss = -control(clip, 16_000, [""]).sum()
        values.append(-float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] > values[0] + 0.2


def test_references_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="silent between 130 and 2100 Hz"):
        MelodyControl(torch.zeros(1, 16_000), 16_000)
    for kind in (MelodyControl, IntensityControl):
        with pytest.raises(InputError, match="with samples"):
            kind(torch.zeros(1, 0), 16_000)


def test_a_sum_adds_its_weighted_parts() -> None:
    wav = torch.randn(3, 1, 800, generator=torch.Generator().manual_seed(0), requires_grad=True)
    total = WeightedSum({"a": (lambda w, r, p: w.mean((1, 2)), 2.0), "b": (lambda w, r, p: w.std((1, 2)), -0.5)})
    values = total(wav, 8_000, [""] * 3)
    assert torch.allclose(values, 2 * wav.mean((1, 2)) - 0.5 * wav.std((1, 2)))
    values.sum().backward()
    assert wav.grad is not None


def test_rewards_as_they_are_written() -> None:
    assert parse_rewards(["compact:1.0", "clap-score:0.3"]) == {"compact": 1.0, "clap-score": 0.3}
    assert parse_rewards(["compact", "C:/judges/mine", "dir/x:-2e-1"]) == {
        "compact": 1.0, "C:/judges/mine": 1.0, "dir/x": -0.2,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [["compact:0"], ["compact:nan"], ["a", "a:2"], [":2"], [""]])
def test_rewards_that_mean_nothing_are_refused(wrong: list[str]) -> None:
    with pytest.raises(InputError, match="reward"):
        parse_rewards(wrong)
