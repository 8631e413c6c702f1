"""Finding a backbone by name or directory, and what is said when it is not there or damaged."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment import load_backbone
from alignment.backbones.known import FAMILIES, SHIPPED, available_backbones, check_backbone, check_device
from alignment.backbones.stable_audio_3 import StableAudio3Backbone
from alignment.errors import InputError


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def copy(backbone_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(backbone_directory, tmp_path / "copy"))


def test_a_directory_gives_back_what_was_saved(
    backbone_directory: Path, make_pipeline: Callable[..., Any], no_network: None
) -> None:
    backbone = load_backbone(backbone_directory, device="cpu")
    assert isinstance(backbone, StableAudio3Backbone)
    assert backbone.license == "apache-2.0" and backbone.name == str(backbone_directory)
    assert backbone.defaults.to_dict() == {"duration": 0.5, "num_inference_steps": 2, "guidance_scale": 2.0}
    built = StableAudio3Backbone(make_pipeline(), name="built", license="", defaults=backbone.defaults.to_dict())
    for name, parameter in built.pipeline.transformer.state_dict().items():
        assert torch.equal(parameter, backbone.pipeline.transformer.state_dict()[name]), name
    assert torch.equal(backbone.generate(["calm"], [0]), built.generate(["calm"], [0]))


def test_loading_leaves_the_libraries_as_talkative_as_they_were(backbone_directory: Path) -> None:
    import diffusers
    import transformers

    both = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in both]
    load_backbone(backbone_directory)
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in both] == before


def test_dtype_is_that_of_the_weights_and_clips_are_float32(backbone_directory: Path) -> None:
    for dtype in ("float32", torch.float32, None):
        loaded = load_backbone(backbone_directory, dtype=dtype)
        assert isinstance(loaded, StableAudio3Backbone)
        assert {p.dtype for p in loaded.pipeline.transformer.parameters()} == {torch.float32}
    half = load_backbone(backbone_directory, dtype="float16")
    assert isinstance(half, StableAudio3Backbone)
    assert {p.dtype for p in half.pipeline.transformer.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", ["compact", "no-such-model", "/no/such/folder", "./here", "a/b/c", ""])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    for call in (check_backbone, load_backbone):
        with pytest.raises(InputError, match=", ".join(available_backbones())) as caught:
            call(name)
        assert "\n" not in str(caught.value)


def test_shipped_models_have_a_licence_and_known_families_can_be_imported() -> None:
    assert SHIPPED["compact-flow"].license == "Apache-2.0"
    for place in FAMILIES.values():
        module, name = place.split(":")
        family = getattr(__import__(module, fromlist=[name]), name)
        assert hasattr(family, "pipeline_class")


def edit_index(directory: Path, **changes: Any) -> None:
    index = json.loads((directory / "model_index.json").read_text())
    (directory / "model_index.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda d: (d / "model_index.json").unlink(), "no model_index.json"),
        (lambda d: (d / "model_index.json").write_text("{"), "model_index.json cannot be read"),
        (lambda d: (d / "model_index.json").write_text("[]"), "expected a JSON object"),
        (lambda d: edit_index(d, _class_name="ShapEPipeline"), "known pipeline classes are .*StableAudio3Pipeline"),
        (lambda d: edit_index(d, transformer=["os", "system"]), "transformer comes from 'os'"),
        (lambda d: edit_index(d, vae=["alignment", "NoSuchCodec"]), "cannot be loaded"),
        (lambda d: shutil.rmtree(d / "transformer"), "cannot be loaded"),
        (lambda d: (d / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (lambda d: (d / "text_encoder" / "model.safetensors").write_bytes(b""), "cannot be loaded"),
        (lambda d: (d / "tokenizer" / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda d: (d / "generation_config.json").write_text("{"), "generation_config.json cannot be read"),
        (lambda d: (d / "generation_config.json").write_text('{"duration": "long"}'), "duration is long"),
    ],
)
def test_a_damaged_directory_is_one_clear_line(copy: Path, damage: Callable[[Path], Any], named: str) -> None:
    damage(copy)
    with pytest.raises(InputError, match=named) as caught:
        load_backbone(copy)
    assert "\n" not in str(caught.value)


def test_weights_that_lack_a_tensor_are_refused(copy: Path) -> None:
    """Silently filling the gap with random numbers would look like a bad model."""
    from safetensors.torch import load_file, save_file

    for file in (
        copy / "transformer" / "diffusion_pytorch_model.safetensors",
        copy / "text_encoder" / "model.safetensors",
    ):
        whole = load_file(file)
        name = next(iter(sorted(whole)))
        save_file({key: value for key, value in whole.items() if key != name}, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match="cannot be loaded"):
            load_backbone(copy)
        save_file(whole, file, metadata={"format": "pt"})
    load_backbone(copy)


@pytest.mark.parametrize(
    ("card", "license_name"),
    [
        (None, "unknown"),
        ("# no header\nlicense: mit\n", "unknown"),
        ("---\ntags: [music]\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
        ("---\nlicense: 'mit'\n---\nlicense: other\n", "mit"),
        ("---\nlicense: other\nlicense_name: stable-audio-community\n---\n", "stable-audio-community"),
    ],
)
def test_licence_is_read_from_the_model_card(copy: Path, card: str | None, license_name: str) -> None:
    (copy / "README.md").unlink()
    if card is not None:
        (copy / "README.md").write_text(card)
    assert load_backbone(copy).license == license_name


@pytest.mark.parametrize(
    ("device", "dtype"), [("gpu", None), ("cuda:x", None), ("", None), ("cpu", "int8"), ("cpu", "half")]
)
def test_devices_and_dtypes_are_checked_early(device: str, dtype: str | None) -> None:
    with pytest.raises(InputError, match="expected"):
        check_device(device, dtype)


def test_a_device_that_is_not_there(backbone_directory: Path) -> None:
    with pytest.raises(InputError, match="use --device cpu"):
        load_backbone(backbone_directory, device="cuda:99")


def test_audiocraft_is_asked_for_only_where_it_is_installed() -> None:
    if importlib.util.find_spec("audiocraft") is not None:
        pytest.skip("audiocraft is installed here; see tests/audiocraft")
    for call in (check_backbone, load_backbone):
        with pytest.raises(InputError, match="requirements/audiocraft.txt"):
            call("audiocraft:facebook/musicgen-small")


@pytest.mark.parametrize("reachable", [True, False])
def test_a_hub_id_that_brings_nothing_ends_in_one_line(
    reachable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(*args: Any, **kwargs: Any) -> str:
        if not reachable:
            raise LocalEntryNotFoundError("no connection\nand nothing in the cache")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(InputError, match="it has no model_index.json" if reachable else "no connection") as caught:
        load_backbone("some/nosuch")
    assert "\n" not in str(caught.value)
