"""Calibrations on disk, damaged too, and judges that go through them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunejury import AnchorCalibration, InputError, RewardModel, fit_anchors, load_reward

from .planted_votes import draw_votes


def test_saved_and_loaded_is_equal(fitted: AnchorCalibration, tmp_path: Path) -> None:
    for calibration in (fitted, fit_anchors([]), fit_anchors(draw_votes(30, tie=1.0), reward="compact")):
        calibration.save(tmp_path / "c.json")
        assert AnchorCalibration.load(tmp_path / "c.json") == calibration


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.update(format="other"), lambda v: v.pop("posterior"), lambda v: v.update(extra=1),
        lambda v: v["posterior"]["mean"].pop(), lambda v: v["posterior"]["mean"].__setitem__(0, None),
        lambda v: v["interval_posterior"]["mean"].pop(), lambda v: v.update(interval_posterior=[1.0]),
        lambda v: v["posterior"].pop("covariance"), lambda v: v["posterior"].update(extra=1),
        lambda v: v["posterior"]["covariance"][0].__setitem__(0, -1.0), lambda v: v.update(method="magic"),
        lambda v: v["interval_posterior"].update(unseen_deviation=-1.0), lambda v: v["num_votes"].pop(),
        lambda v: v.update(systems=5), lambda v: v["posterior"].update(unseen_deviation="wide"),
        lambda v: v.update(reference_system="nobody"), lambda v: v.update(margin_deviation=-1.0),
        lambda v: v["num_votes"].__setitem__(0, "many"), lambda v: v["systems"].__setitem__(0, None),
        lambda v: v["posterior"]["mean"].__setitem__(0, 10**400),
    ],
)  # fmt: skip
def test_damaged_file_is_one_line(fitted: AnchorCalibration, tmp_path: Path, damage: Callable[[dict], object]) -> None:
    path = tmp_path / "c.json"
    fitted.save(path)
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="c.json is no calibration: [^\n]+$"):
        AnchorCalibration.load(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match="is no calibration"):
        AnchorCalibration.load(tmp_path / "c.json")
    with pytest.raises(InputError, match="does not exist"):
        AnchorCalibration.load(tmp_path / "missing.json")


def test_calibrated_judge(
    fitted: AnchorCalibration, tiny_directory: Path, tiny_judge: RewardModel, noise: Callable[..., torch.Tensor],
    tmp_path: Path,
) -> None:  # fmt: skip
    fitted.save(tmp_path / "c.json")
    wav = noise()[None]
    raw = tiny_judge(wav, 16_000)
    for given in (fitted, tmp_path / "c.json"):
        judge = load_reward(tiny_directory, device="cpu", calibration=given, system="b")
        torch.testing.assert_close(judge(wav, 16_000), fitted.calibrated(raw, "b"))
        assert judge.protocol["calibration"]["system"] == "b"
        assert judge(wav, 16_000).dtype == torch.float32
    assert "calibration" not in tiny_judge.protocol


def test_calibration_for_another_judge_or_no_system(fitted: AnchorCalibration, tiny_directory: Path) -> None:
    with pytest.raises(InputError, match="needs the system .* a, b, c, d, e"):
        load_reward(tiny_directory, device="cpu", calibration=fitted)
    other = dataclasses.replace(fitted, reward="another")
    with pytest.raises(InputError, match="for the judge 'another', not 'tiny'"):
        load_reward(tiny_directory, device="cpu", calibration=other, system="b")
