"""Embeddings of a folder of real music, to measure distances to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import InputError
from alignment.interfaces import Embed, LoadAudio
from alignment.prompts import AUDIO_SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor


def find_reference(folder: str | Path) -> list[Path]:
    """Its audio files, in order.

    Raises:
        InputError: no folder, or fewer than two files in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --reference-audio expects a folder of audio files")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
    if len(files) < 2:
        raise InputError(f"{folder} holds {len(files)} audio files; expected at least 2 as a reference")
    return files


def embed_files(files: list[Path], load_audio: LoadAudio, embed: Embed) -> Tensor:
    """The directions [N, E] of the files' embeddings, float64 on the CPU.

    Raises:
        InputError: a file that cannot be read or heard, by name.
    """
    import torch

    rows = []
    for file in files:
        try:
            wav, sample_rate = load_audio(file)
            with torch.no_grad():
                rows.append(embed(wav[None], sample_rate)[0].double().cpu())
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"reference audio: {reason if str(file) in reason else f'{file}: {reason}'}") from None
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)
