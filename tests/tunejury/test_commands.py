"""The commands beside `score`'s tables: compare, scores through a calibration, licences, verify."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from tunejury import RewardModel, fit_anchors, load_reward, save_audio
from tunejury.cli import main
from tunejury.command_verify import PUBLISHED_REWARDS, checksum_row
from tunejury.embedding_cache import EmbeddingCache
from tunejury.manifest import Item
from tunejury.preferences import PreferencePair
from tunejury.scoring import score_files


def test_compare_gives_margin_and_probability(
    tiny_directory: Path, tiny_judge: RewardModel, items: list[Item], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = items[0].path, items[1].path
    options = ["--prompt", "drums", "--reward", str(tiny_directory), "--device", "cpu", "--json"]
    assert main(["compare", str(a), str(b), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    first, second = score_files(tiny_judge, [a, b], ["drums", "drums"])
    assert result["margin"] == pytest.approx(first - second, abs=1e-5)
    assert result["probability_a"] == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-5)
    assert main(["compare", str(a), str(a), *options[:-1]]) == 0
    assert "A wins with probability 0.500" in capsys.readouterr().out
    assert main(["compare", str(a), str(a) + "x", *options]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_calibration_changes_rewards_and_not_what_was_heard(
    tiny_directory: Path, tiny_judge: RewardModel, items: list[Item], tmp_path: Path
) -> None:
    """A calibrated judge finds the embeddings that the plain one kept."""
    calibration = fit_anchors([], reward=tiny_judge.config.name)
    judge = load_reward(tiny_directory, device="cpu", calibration=calibration, system="new")
    assert judge.protocol != tiny_judge.protocol and judge.listening == tiny_judge.listening
    plain = score_files(tiny_judge, [items[0].path], cache=EmbeddingCache(tmp_path / "cache", tiny_judge))[0]
    kept = sorted((tmp_path / "cache").rglob("*"))
    through = score_files(judge, [items[0].path], cache=EmbeddingCache(tmp_path / "cache", judge))[0]
    assert through == pytest.approx(calibration.calibrated(plain, "new"), abs=1e-5) and through != plain
    assert sorted((tmp_path / "cache").rglob("*")) == kept


def test_score_goes_through_a_calibration(
    tiny_directory: Path, tiny_judge: RewardModel, items: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = fit_anchors([], reward=tiny_judge.config.name)
    calibration.save(tmp_path / "c.json")
    clip, options = str(items[0].path), ["--reward", str(tiny_directory), "--device", "cpu", "--json"]
    assert main(["score", clip, *options, "--calibration", str(tmp_path / "c.json"), "--system", "new"]) == 0
    result = json.loads(capsys.readouterr().out)[0]
    plain = score_files(tiny_judge, [items[0].path])[0]
    assert result["reward"] == pytest.approx(calibration.scale * plain, abs=1e-5) and result["reward"] != plain
    assert result["protocol"]["calibration"]["system"] == "new"
    for wrong in (["--system", "new"], ["--calibration", str(tmp_path / "c.json")]):
        assert main(["score", clip, *options, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_compare_goes_through_a_calibration(
    tiny_directory: Path, tiny_judge: RewardModel, items: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = items[0].path, items[1].path
    votes = [
        PreferencePair(str(i), float(i < 20), system_a="new", system_b="old", reward_a=0.1, reward_b=0.0)
        for i in range(25)
    ]
    calibration = fit_anchors(votes, reward=tiny_judge.config.name)
    calibration.save(tmp_path / "c.json")
    options = ["--reward", str(tiny_directory), "--device", "cpu", "--json"]
    by = ["--calibration", str(tmp_path / "c.json"), "--system-a", "new", "--system-b", "old"]
    assert main(["compare", str(a), str(b), *options, *by]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = calibration.win_probability(result["margin"], "new", "old")
    assert result["probability_a"] == pytest.approx(expected, abs=1e-9)
    assert abs(expected - 1 / (1 + math.exp(-result["margin"]))) > 0.05  # it is not the raw one
    assert result["system_a"] == "new" and result["calibration"] == str(tmp_path / "c.json")
    assert main(["compare", str(a), str(b), *options, *by[:4]]) == 2
    assert "--system-b together" in capsys.readouterr().err
    fit_anchors(votes, reward="another").save(tmp_path / "c.json")
    assert main(["compare", str(a), str(b), *options, *by]) == 2
    assert "is for the judge 'another'" in capsys.readouterr().err


def test_licenses_are_listed_without_loading(tiny_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["licenses", "tunejury", "tunejury-clap", str(tiny_directory)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert ["tunejury", "mert", "CC BY-NC 4.0"] in lines and ["tunejury-clap", "tunejury-clap", "Apache-2.0"] in lines
    assert not [line for line in lines if line[0] == "tunejury-clap" and "NC" in line[2]]
    assert [str(tiny_directory), "tiny", "Apache-2.0"] in lines
    assert main(["licenses", "nonsense"]) == 2


def test_checksums_tell_a_published_file_from_another(tmp_path: Path) -> None:
    (tmp_path / "tunejury.pt").write_text("other")
    assert checksum_row(tmp_path / "tunejury.pt")[1] is False
    (tmp_path / "unknown.pt").write_text("other")
    assert checksum_row(tmp_path / "unknown.pt")[1] is None
    real = Path(__file__).parents[3] / "shared" / "data" / "heads" / "tunejury_muq_leave_MA.pt"
    if not real.exists():
        pytest.skip("no ../shared/data/heads here")
    assert checksum_row(real)[1] is True


def test_verify_prints_a_table_and_fails_on_other_files(
    released_files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"{part}={path}" for part, path in released_files.items()]
    assert main(["verify", "--files", *files, "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    rows = [line.split("\t") for line in captured.out.splitlines()]
    assert [(row[0], row[1]) for row in rows] == [
        ("FAIL", "tunejury.pt"), ("FAIL", "music_audioset_epoch_15_esc_90.14.pt"), ("pass", "weights"),
    ]  # fmt: skip
    assert captured.err.startswith("error: 2 of 3 checks")


def test_verify_compares_the_demo_clips_with_their_own_prompt_protocol_and_tolerance(
    released_files: dict[str, Path], music: Callable[..., Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, clip in enumerate(PUBLISHED_REWARDS[:-1]):
        save_audio(tmp_path / f"{clip.beginning}.wav", music(i, 16_000, 0.3), 16_000)
    files = [f"{part}={path}" for part, path in released_files.items()]
    command = ["verify", "--files", *files, "--device", "cpu", "--demo", str(tmp_path)]
    assert main([*command, "--tolerance", "1000"]) == 2
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()][3:]
    assert {row[1].split(".")[0]: row[0] for row in rows} == {
        "mode1_p75_n1": "pass", "mode1_p75_top": "pass", "mode2_tangoflux_p0_baseline": "FAIL",
        "mode2_tangoflux_p0_ditto": "FAIL", "mode3_p46_baseline": "pass", "mode3_p46_finetuned": "unknown",
    }  # fmt: skip
    details = {row[1]: row[2] for row in rows}
    assert "published +1.71 within 1000, protocol release, with prompt" in details["mode1_p75_top.wav"]
    assert "within 0.5, protocol training, with prompt" in details["mode2_tangoflux_p0_ditto.wav"]
    judge = load_reward("tunejury", device="cpu", files=released_files)
    clip = PUBLISHED_REWARDS[0]
    reward = score_files(judge, [tmp_path / f"{clip.beginning}.wav"], clip.prompts)[0]
    assert details["mode1_p75_n1.wav"].startswith(f"reward {reward:+.3f}")
    assert main([*command, "--tolerance", "0"]) == 2
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("pass\tmode")]
    for wrong, message in ((["--tolerance", "-1"], "expected a number"), (["--reward", "tunejury-clap"], "'tunejury'")):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
