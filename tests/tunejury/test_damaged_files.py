"""500 damaged audio files and 200 damaged checkpoints: each is one error line or a right score; nothing crashes, hangs
or runs code.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from tunejury import RewardModel, save_audio
from tunejury.encoders.clap import ClapAudioEncoder, ClapTextEncoder
from tunejury.head import RewardHead

from .conftest import fill, laion_weights

ROOT = Path(__file__).parents[2]
HEADER = 200  # bytes at the beginning of a file


def damaged(content: bytes, chance: random.Random, near: float) -> bytes:
    """Some bytes changed, taken out, put in or cut off; with the probability `near` close to the beginning."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        end = min(len(data), HEADER) if chance.random() < near else len(data)
        place = chance.randrange(max(1, end))
        kind = chance.random()
        if kind < 0.6:
            data[place : place + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
        elif kind < 0.75:
            del data[place : place + chance.choice((1, 2, 4, 50))]
        elif kind < 0.9:
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 2, 4, 50))))
        else:
            data = data[: chance.randrange(len(data) + 1)]
    return bytes(data)


def run(what: str, folder: Path, other: Path) -> dict[str, dict[str, Any]]:
    """What came of each file, from a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("damaged_files.py")), what, str(folder), str(other)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    last = lines[-1] if lines else None
    assert done.returncode == 0, f"after {last}: {done.stderr[-2000:]}"
    found = {line["file"]: line for line in lines}
    assert found.keys() == {file.name for file in folder.iterdir()}
    for line in found.values():
        assert math.isfinite(line["reward"]) if "reward" in line else "\n" not in line["error"], line
    return found


def test_damaged_audio_is_an_error_line_or_a_right_score(
    tiny_directory: Path, music: Callable[..., Tensor], noise: Callable[..., Tensor], tmp_path: Path
) -> None:
    folder, chance = tmp_path / "clips", random.Random(0)
    folder.mkdir()
    wav = (music(0, 16_000, 0.2) + 0.3 * noise(0, 2, 3_200)).T.numpy()
    for suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(tmp_path / f"whole.{suffix}", wav, 16_000)
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        (folder / f"whole.{suffix}").write_bytes(content)
        for i in range(125):
            (folder / f"{i:03}.{suffix}").write_bytes(damaged(content, chance, 0.7))
    found = run("clips", folder, tiny_directory)
    assert len(found) == 504
    errors = [line for line in found.values() if "error" in line]
    scores = [line for line in found.values() if "reward" in line]
    # neither answer is given to all: both of the paths are walked
    assert len(errors) > 50 and len(scores) > 50, (len(errors), len(scores))
    for line in scores:
        assert line["reward"] == pytest.approx(line["again"], abs=1e-4), line
    assert all("reward" in found[f"whole.{suffix}"] for suffix in ("wav", "flac", "ogg", "mp3"))


def test_damaged_checkpoint_is_an_error_line_or_a_judge(
    tiny_judge: RewardModel, clap_audio: ClapAudioEncoder, clap_text: ClapTextEncoder, music: Callable[..., Tensor],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Our directories with damaged weights or config, and released heads with a damaged `.pt` or description."""
    chance, folder = random.Random(1), tmp_path / "judges"
    folder.mkdir()
    tiny_judge.save_pretrained(tmp_path / "tiny")
    names = [("model.safetensors", 60), ("config.json", 60)]
    for name, count in names:
        content = (tmp_path / "tiny" / name).read_bytes()
        for i in range(count):
            copy = folder / f"{name.split('.')[1]}-{i:03}"
            shutil.copytree(tmp_path / "tiny", copy)
            (copy / name).write_bytes(damaged(content, chance, 0.1))
    shutil.copytree(tmp_path / "tiny", folder / "whole")
    save_audio(tmp_path / "clip.wav", music(0, 16_000, 0.3), 16_000)
    found = run("judges", folder, tmp_path / "clip.wav")
    assert "reward" in found["whole"]
    kinds = {kind: [line for name, line in found.items() if name.startswith(kind)] for kind in ("safetensors", "json")}
    for lines in kinds.values():
        assert sum("error" in line for line in lines) > 20
    assert sum("reward" in line for lines in kinds.values() for line in lines) > 5

    # heads and what stands beside them are read without any encoder
    from tunejury import InputError
    from tunejury.checkpoints import read_state_dict
    from tunejury.releases import read_blocks, read_head

    head, sidecar = tmp_path / "A1.pt", tmp_path / "A1.json"
    torch.save(fill(RewardHead(16, (8,))).state_dict(), head)
    sidecar.write_text('{"input_dim": 16, "exclude": ["mert", "text"]}')
    whole = {"head": head.read_bytes(), "sidecar": sidecar.read_bytes()}
    torch.save({"epoch": 15, "state_dict": laion_weights(clap_audio, clap_text)}, tmp_path / "clap.pt")
    whole["clap"] = (tmp_path / "clap.pt").read_bytes()
    outcomes = {"error": 0, "read": 0}
    for part, count in (("head", 40), ("sidecar", 25), ("clap", 15)):
        for _ in range(count):
            head.write_bytes(damaged(whole["head"], chance, 0.1) if part == "head" else whole["head"])
            sidecar.write_bytes(damaged(whole["sidecar"], chance, 0.1) if part == "sidecar" else whole["sidecar"])
            try:
                if part == "clap":
                    (tmp_path / "clap.pt").write_bytes(damaged(whole["clap"], chance, 0.1))
                    assert all(isinstance(tensor, Tensor) for tensor in read_state_dict(tmp_path / "clap.pt").values())
                else:
                    assert read_blocks(head)[0] and isinstance(read_head(head), RewardHead)
                outcomes["read"] += 1
            except InputError as error:
                assert "\n" not in str(error)
                outcomes["error"] += 1
    assert min(outcomes.values()) > 3, outcomes
