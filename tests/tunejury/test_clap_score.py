"""CLAP score: the cosine of a clip and its prompt, one path for files, arrays and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tunejury import InputError, save_audio
from tunejury.clap_score import ClapScore, load_clap_score
from tunejury.encoders.clap import ClapAudioEncoder, ClapTextEncoder
from tunejury.scoring import score_files

PROMPTS = ["a piano", "drums", "a piano"]


@pytest.fixture(scope="module")
def clap(released_files: dict[str, Path]) -> ClapScore:
    return load_clap_score(device="cpu", files={part: released_files[part] for part in ("clap", "roberta")})


@pytest.fixture(scope="module")
def wav(music: Callable[..., Tensor]) -> Tensor:
    return torch.stack([music(seed, 48_000, 1.0) for seed in range(3)])


def test_score_is_the_cosine_of_the_two_embeddings(
    clap: ClapScore, clap_audio: ClapAudioEncoder, clap_text: ClapTextEncoder, wav: Tensor
) -> None:
    with torch.no_grad():
        expected = (clap_audio(wav[:, 0]) * clap_text(PROMPTS)).sum(-1)  # both of unit length
    torch.testing.assert_close(clap(wav, 48_000, PROMPTS), expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-4 and clap.licenses()["clap-score"] == "Apache-2.0"


def test_file_array_and_single_agree(clap: ClapScore, wav: Tensor, tmp_path: Path) -> None:
    together = clap(wav, 48_000, PROMPTS)
    for place, clip in enumerate(wav):
        save_audio(tmp_path / f"{place}.wav", clip, 48_000)
        torch.testing.assert_close(clap(clip[None], 48_000, [PROMPTS[place]])[0], together[place], rtol=0, atol=1e-5)
    scores = score_files(clap, [tmp_path / f"{place}.wav" for place in range(3)], PROMPTS)
    assert scores == pytest.approx(together.tolist(), abs=1e-4)


def test_gradient_is_the_slope(clap: ClapScore, wav: Tensor, noise: Callable[..., Tensor]) -> None:
    exact = copy.deepcopy(clap).double()
    # with a noise floor: beside silence, a step that can be measured is no longer a small one for a logarithm
    clip = (wav[:1] + noise(0, 1, wav.shape[-1])).double().requires_grad_()
    exact(clip, 48_000, PROMPTS[:1]).sum().backward()
    assert clip.grad is not None
    step = 1e-6 * clip.grad / clip.grad.norm()
    with torch.no_grad():
        up, down = (float(exact(clip + way * step, 48_000, PROMPTS[:1])) for way in (1, -1))
    assert up - down == pytest.approx(2e-6 * float(clip.grad.norm()), rel=1e-3)


def test_long_clip_is_heard_whole(
    clap: ClapScore, music: Callable[..., Tensor], released_files: dict[str, Path]
) -> None:
    """Under `windows` another ending changes the score, under `release` (the middle 10 s) it does not."""
    start = torch.cat([music(0, 48_000, 1.0)] * 16, dim=1)
    changed = start.clone()
    changed[:, -48_000:] = music(7, 48_000, 1.0)
    centre = load_clap_score(
        device="cpu", protocol="release", files={part: released_files[part] for part in ("clap", "roberta")}
    )
    scores = [[float(model(clip[None], 48_000, ["drums"])) for clip in (start, changed)] for model in (clap, centre)]
    assert abs(scores[0][0] - scores[0][1]) > 1e-5 and scores[1][0] == pytest.approx(scores[1][1], abs=1e-6)


def test_mistakes_are_one_line(clap: ClapScore, wav: Tensor, tmp_path: Path) -> None:
    for prompts in (["a piano", " ", "x"], None):
        with pytest.raises(InputError, match="is empty: a CLAP score is between a clip and a text"):
            clap(wav, 48_000, prompts)
    with pytest.raises(InputError, match="unknown part 'mert'"):
        load_clap_score(device="cpu", files={"mert": tmp_path})
    with pytest.raises(InputError, match="does not exist"):
        load_clap_score(device="cpu", files={"clap": tmp_path / "no.pt", "roberta": tmp_path})
