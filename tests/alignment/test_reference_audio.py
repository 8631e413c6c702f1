"""A folder of real music, as a reference to measure distances to."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.errors import InputError
from alignment.reference_audio import embed_files, find_reference
from tunejury import load_audio, save_audio

read = partial(load_audio, channels=1)


def embed(wav: Tensor, sample_rate: int) -> Tensor:
    """Mean, loudest sample and rate."""
    flat = wav.flatten(1)
    return torch.stack([flat.mean(1), flat.amax(1), torch.full((len(wav),), sample_rate / 8000)], dim=1)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for k, level in enumerate((0.1, 0.5)):
        save_audio(tmp_path / "a" / f"{k}.wav" if k else tmp_path / "0.wav", torch.full((1, 100), level), 8000)
    (tmp_path / "notes.txt").write_text("no music")
    return tmp_path


def test_every_file_is_a_direction(music: Path) -> None:
    files = find_reference(music)
    assert [file.name for file in files] == ["0.wav", "1.wav"]
    found = embed_files(files, read, embed)
    expected = torch.tensor([[0.1, 0.1, 1.0], [0.5, 0.5, 1.0]], dtype=torch.float64)
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"RIFF no music at all"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(music: Path, content: bytes) -> None:
    (music / "b.wav").write_bytes(content)
    with pytest.raises(InputError, match=r"^reference audio: .*b\.wav") as caught:
        embed_files(find_reference(music), read, embed)
    assert "\n" not in str(caught.value)


def test_a_reference_is_at_least_two_files(music: Path) -> None:
    (music / "0.wav").unlink()
    with pytest.raises(InputError, match="holds 1 audio files; expected at least 2"):
        find_reference(music)
    with pytest.raises(InputError, match="is not a folder"):
        find_reference(music / "nowhere")
