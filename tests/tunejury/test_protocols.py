"""What each protocol lets each encoder hear."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tunejury import InputError, RewardModel, load_reward
from tunejury.encoders.clap import ClapAudioEncoder
from tunejury.encoders.mert import MertEncoder
from tunejury.protocol import PROTOCOLS, Hearing, hear, listen, window_spans

RATE = 24_000
SEGMENTS = PROTOCOLS["release"].hearing("mert")


@pytest.fixture(scope="module")
def judge(released_files: dict[str, Path]) -> Callable[[str], RewardModel]:
    """judge(protocol): the small released reward, hearing so."""
    made: dict[str, RewardModel] = {}

    def make(protocol: str) -> RewardModel:
        if protocol not in made:
            made[protocol] = load_reward("tunejury", device="cpu", files=released_files, protocol=protocol)
        return made[protocol]

    return make


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.1, [0.1]),
        (300.0, [300.0]),
        (300.9, [300.9]),  # under a second is left: the last segment takes it
        (301.0, [300.0, 1.0]),
        (600.5, [300.0, 300.5]),
        (700.0, [300.0, 300.0, 100.0]),
    ],
)
def test_segments_follow_one_another_to_the_end(seconds: float, expected: list[float]) -> None:
    spans = window_spans(round(seconds * RATE), SEGMENTS, RATE)
    assert [length / RATE for _, length in spans] == expected
    assert [start for start, _ in spans] == [sum(length for _, length in spans[:i]) for i in range(len(spans))]


def test_segments_weigh_by_their_frames(mert: MertEncoder, music: Callable[..., Tensor]) -> None:
    hearing = dataclasses.replace(SEGMENTS, window_seconds=2.0)
    wav = music(0, RATE, 5.5)
    with torch.no_grad():
        parts = [mert(part) for part in wav.split(2 * RATE, dim=-1)]
        frames = [mert.num_frames(part.shape[-1]) for part in wav.split(2 * RATE, dim=-1)]
        expected = sum(n * part for n, part in zip(frames, parts, strict=True)) / sum(frames)
        torch.testing.assert_close(listen(mert, wav, hearing), expected, rtol=0, atol=1e-5)
    assert frames == [149, 149, 112]


def test_clap_hears_the_middle_under_release(judge: Callable[..., RewardModel], music: Callable[..., Tensor]) -> None:
    release, windows = judge("release"), judge("windows")
    wav = torch.cat([music(1, 48_000, 5.0), music(2, 48_000, 10.0), music(3, 48_000, 5.0)], dim=1)[None]
    other = torch.cat([music(4, 48_000, 5.0), music(2, 48_000, 10.0), music(5, 48_000, 5.0)], dim=1)[None]
    with torch.no_grad():
        middle = release.encode_audio(wav[..., 240_000:720_000], 48_000)["clap-audio"]
        torch.testing.assert_close(release.encode_audio(wav, 48_000)["clap-audio"], middle, rtol=0, atol=1e-6)
        torch.testing.assert_close(release.encode_audio(other, 48_000)["clap-audio"], middle, rtol=0, atol=1e-6)
        whole = windows.encode_audio(wav, 48_000)["clap-audio"]
        halves = [windows.encode_audio(half, 48_000)["clap-audio"] for half in wav.split(480_000, dim=-1)]
        torch.testing.assert_close(whole, torch.stack(halves).mean(0), rtol=0, atol=1e-6)
        assert (whole - windows.encode_audio(other, 48_000)["clap-audio"]).norm() > 1e-3


def test_a_tone_at_12_khz_is_heard_under_release_and_not_under_training(
    judge: Callable[..., RewardModel], music: Callable[..., Tensor], tone: Callable[..., Tensor]
) -> None:
    plain = music(0, 44_100, 2.0)[None]
    with_tone = plain + 0.2 * tone(12_000.0, 44_100, 2.0)
    with torch.no_grad():
        change = {
            name: float((judge(name)(with_tone, 44_100) - judge(name)(plain, 44_100)).abs()) for name in PROTOCOLS
        }
    # what is left under training is MERT's, whose band ends there
    assert min(change["release"], change["windows"]) > max(3e-4, 5 * change["training"]), change


def test_samples_beyond_full_scale_are_limited_under_release_alone(clap_audio: ClapAudioEncoder) -> None:
    loud = torch.full((1, 1, 48_000), 1.5)
    heard = {name: hear(loud, 48_000, clap_audio, PROTOCOLS[name].hearing("clap-audio")).max() for name in PROTOCOLS}
    assert heard["release"] == heard["windows"] == 1.0 < heard["training"]


def test_record_says_what_was_heard(judge: Callable[..., RewardModel]) -> None:
    record = judge("training").protocol
    assert record == {
        "name": "training",
        "version": 1,
        "encoders": {
            "clap-audio": {
                "kind": "clap-audio", "sample_rate": 48_000, "downmix": "mean", "windows": "centre",
                "window_seconds": 10.0, "pooling": "mean", "through_rate": 16_000,
            },
            "mert": {
                "kind": "mert", "sample_rate": 24_000, "downmix": "mean", "windows": "segments",
                "window_seconds": 300.0, "pooling": "frames", "do_normalize": True,
            },
        },
    }  # fmt: skip
    assert judge("release").protocol["encoders"]["clap-audio"]["limit"] is True


def test_what_a_protocol_does_not_say_is_an_error(tiny_directory: Path) -> None:
    with pytest.raises(InputError, match="'training' does not say what an encoder of kind 'compact-audio' hears"):
        load_reward(tiny_directory, protocol="training")


def test_long_windows_are_given_few_at_a_time() -> None:
    """Sixteen segments of five minutes at once would not fit; sixteen windows of ten seconds do."""
    given: list[tuple[int, int]] = []

    class Counter:
        name, license, sample_rate, dim = "counter", "none", 100, 1
        batches_on_cpu = True

        def __call__(self, wav: Tensor) -> Tensor:
            given.append((wav.shape[0], wav.shape[1]))
            return wav.mean(1, keepdim=True)

    listen(Counter(), torch.zeros(20, 1_000), Hearing("spread", 10.0, "mean"))
    assert given == [(16, 1_000), (4, 1_000)]
    given.clear()
    listen(Counter(), torch.zeros(3, 60_000), Hearing("segments", 300.0, "mean"))
    assert given == [(1, 30_000)] * 6
