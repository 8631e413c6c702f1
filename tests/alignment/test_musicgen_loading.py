"""MusicGen from a directory: found by its config.json, complete, and what is said when it is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment import load_backbone
from alignment.backbones.known import MODEL_TYPES, check_backbone
from alignment.backbones.musicgen import MusicgenBackbone
from alignment.errors import InputError

Make = Callable[..., tuple[Any, Any]]


@pytest.fixture
def copy(musicgen_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(musicgen_directory, tmp_path / "copy"))


def test_a_directory_gives_back_what_was_saved(musicgen_directory: Path, make_musicgen: Make) -> None:
    check_backbone(musicgen_directory)
    backbone = load_backbone(musicgen_directory, device="cpu")
    assert isinstance(backbone, MusicgenBackbone)
    assert backbone.license == "cc-by-nc-4.0" and backbone.name == str(musicgen_directory)
    own = {"duration": 0.5, "guidance_scale": 2.0, "temperature": 1.1, "top_k": 20, "top_p": 1.0}
    assert backbone.defaults.to_dict() == own
    built = MusicgenBackbone(*make_musicgen(), name="built", license="", defaults=own)
    assert torch.equal(backbone.generate(["calm"], [0]), built.generate(["calm"], [0]))


@pytest.mark.parametrize("kind", [{"melody": True}, {"stereo": True}])
def test_the_other_kinds_are_found_too(kind: dict[str, bool], make_musicgen: Make, tmp_path: Path) -> None:
    for part in make_musicgen(**kind):
        part.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert isinstance(backbone, MusicgenBackbone)
    built = MusicgenBackbone(*make_musicgen(**kind), name="built", license="")
    assert torch.equal(backbone.generate(["calm"], [0], 0.2), built.generate(["calm"], [0], 0.2))


def test_dtype_is_that_of_the_language_model_and_the_codec_stays_exact(musicgen_directory: Path) -> None:
    half = load_backbone(musicgen_directory, dtype="bfloat16")
    assert isinstance(half, MusicgenBackbone)
    assert {p.dtype for p in half.model.decoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.codec.parameters()} == {torch.float32}
    wav = half.generate(["calm"], [0], 0.2)
    assert wav.dtype == torch.float32 and wav.isfinite().all()


def test_defaults_that_are_given_take_the_place_of_the_models_own(musicgen_directory: Path) -> None:
    own = load_backbone(musicgen_directory).defaults.to_dict()
    given = {"temperature": 0.7, "top_p": 0.9, "duration": 0.3}
    assert load_backbone(musicgen_directory, defaults=given).defaults.to_dict() == {**own, **given}
    for wrong, named in (({"top_k": -1}, "top_k is -1"), ({"steps": 3}, "no setting 'steps'; its settings are")):
        with pytest.raises(InputError, match=named):
            load_backbone(musicgen_directory, defaults=wrong)


def test_known_models_can_be_imported() -> None:
    for place in MODEL_TYPES.values():
        module, name = place.split(":")
        assert hasattr(getattr(__import__(module, fromlist=[name]), name), "load_parts")


def edit_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def drop_tensor(directory: Path, name: str) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights[name]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda d: (d / "config.json").unlink(), "no model_index.json and no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda d: edit_config(d, model_type="gpt2"), "known model types are musicgen"),
        (lambda d: edit_config(d, model_type=None), "known model types are musicgen"),
        (lambda d: edit_config(d, audio_encoder={"model_type": "dac"}), "expected 'encodec'"),
        (lambda d: edit_config(d, text_encoder={"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}), "be loaded"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (lambda d: drop_tensor(d, "decoder.lm_heads.1.weight"), "lack 1 tensors, first decoder.lm_heads.1.weight"),
        (lambda d: drop_tensor(d, "audio_encoder.quantizer.layers.0.codebook.embed"), "lack 1 tensors"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda d: (d / "generation_config.json").write_text('{"top_p": 7}'), "top_p is 7"),
    ],
)
def test_a_damaged_directory_is_one_clear_line(copy: Path, damage: Callable[[Path], Any], named: str) -> None:
    damage(copy)
    with pytest.raises(InputError, match=named) as caught:
        load_backbone(copy)
    assert "\n" not in str(caught.value)
