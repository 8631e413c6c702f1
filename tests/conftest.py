"""What all tests share: the markers, and the small models of tiny_models.py as fixtures and as directories."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .tiny_models import build_tiny_musicgen, build_tiny_pipeline


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; read when torch is first imported
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    config.addinivalue_line("markers", "audiocraft: builds an environment of its own; runs only with -m audiocraft")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "audiocraft" not in config.getoption("markexpr"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("audiocraft")])
        items[:] = [item for item in items if not item.get_closest_marker("audiocraft")]


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Any]:
    """make_pipeline(family="stable-audio-3", **settings) -> a fresh tiny pipeline, always the same weights."""
    return build_tiny_pipeline


@pytest.fixture(scope="session")
def backbone_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny StableAudio3 pipeline as a directory, with defaults of its own and a model card."""
    directory = tmp_path_factory.mktemp("backbone") / "tiny-flow"
    build_tiny_pipeline().save_pretrained(directory)
    defaults = {"duration": 0.5, "num_inference_steps": 2, "guidance_scale": 2.0}
    (directory / "generation_config.json").write_text(json.dumps(defaults))
    (directory / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- music\n---\n# Tiny\n")
    return directory


@pytest.fixture(scope="session")
def make_musicgen() -> Callable[..., tuple[Any, Any]]:
    """make_musicgen(stereo=..., melody=...) -> a fresh tiny model and its tokenizer, always the same weights."""
    return build_tiny_musicgen


@pytest.fixture(scope="session")
def musicgen_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny MusicGen as transformers saves it, with defaults of its own and a model card."""
    directory = tmp_path_factory.mktemp("backbone") / "tiny-musicgen"
    model, tokenizer = build_tiny_musicgen()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    file = directory / "generation_config.json"
    own = {"duration": 0.5, "guidance_scale": 2.0, "temperature": 1.1, "top_k": 20, "do_sample": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    (directory / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Tiny\n")
    return directory
