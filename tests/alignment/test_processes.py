"""What processes know of each other."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from alignment.processes import launched_processes, own_device


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        ({}, False),
        ({"ACCELERATE_USE_CPU": "True"}, False),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"}, False),
    ],
)
def test_a_launcher_that_started_fewer_than_it_was_asked_for_is_told_of(
    environment: dict[str, str], warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    logger = logging.getLogger("alignment.processes")
    monkeypatch.setattr(logger, "disabled", False)
    with caplog.at_level(logging.WARNING, logger=logger.name):
        assert launched_processes("cpu").num_processes == 1
    assert ("--multi_gpu" in caplog.text) is warned


@pytest.mark.parametrize(
    ("count", "own", "asked", "expected"),
    [
        (1, "cpu", "auto", None),
        (1, "cuda:0", "cuda", "cuda"),
        (2, "cpu:0", "auto", "cpu"),  # what accelerate calls it
        (2, "cpu:0", "cpu", "cpu"),
        (2, "cpu:0", "cuda", "cuda"),  # which then is said not to be there
        (2, "cuda:1", "auto", "cuda:1"),
        (2, "cuda:1", "cuda", "cuda:1"),
        (2, "cuda:1", "cuda:0", "cuda:0"),
        (2, "cuda:1", "cpu", "cpu"),
    ],
)
def test_each_process_has_a_device_of_its_own(count: int, own: str, asked: str, expected: str | None) -> None:
    assert own_device(asked, SimpleNamespace(num_processes=count, device=torch.device(own))) == expected
