"""Files of votes: reading, judging, and what they compare."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tunejury import AnchorCalibration, InputError, RewardModel, load_audio, save_audio
from tunejury.calibration_check import held_out_probabilities
from tunejury.calibration_fit import fit_anchors, fit_published
from tunejury.cli import main
from tunejury.metrics import log_loss, pairwise_accuracy
from tunejury.preferences import PreferencePair
from tunejury.votes import connected_groups, count_votes, one_sided_systems, read_votes

DATA = Path(__file__).parents[3] / "shared/data/music_arena"
HEADER = "battle_id,system_a,system_b,winner,reward_a,reward_b\n"
ROWS = "1,x,y,a,0.5,0.1\n2,y,x,a,0.2,0.4\n3,x,z,tie,0,0\n4,z,y,b,1,0\n5,x,y,B,0,0\n"


@pytest.fixture
def calibrate(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """calibrate(arguments...) -> (exit code, standard output, standard error) of `tunejury calibrate`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["calibrate", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def votes_file(tmp_path: Path) -> Path:
    (tmp_path / "votes.csv").write_text(HEADER + ROWS)
    return tmp_path / "votes.csv"


def pair(a: str, b: str, target: float = 1.0) -> PreferencePair:
    return PreferencePair("0", target, system_a=a, system_b=b, reward_a=0.0, reward_b=0.0)


def test_graph_of_votes() -> None:
    votes = [pair("a", "b"), pair("c", "d", 0), pair("d", "e"), pair("f", "f"), pair("e", "c", 0.5)]
    assert connected_groups(votes) == [["c", "d", "e"], ["a", "b"], ["f"]]
    assert connected_groups([*votes, pair("b", "e"), pair("f", "a")]) == [list("abcdef")]
    assert connected_groups([]) == []
    assert one_sided_systems(votes) == ["a", "b", "d"]
    assert count_votes(votes) == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 2, "f": 1}


def test_clips_are_judged_once(
    calibrate: Any, music: Callable[..., Tensor], tiny_judge: RewardModel, tiny_directory: Path, tmp_path: Path
) -> None:
    for seed in range(3):
        save_audio(tmp_path / f"{seed}.wav", music(seed, 16_000, 0.5), 16_000)
    rows = [
        {"prompt": "calm piano", "audio_a": f"{a}.wav", "audio_b": f"{b}.wav", "winner": "a", "system_a": f"s{a}",
         "system_b": f"s{b}"} for a, b in ((0, 1), (1, 2), (2, 0))
    ]  # fmt: skip
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: list[Path] = []

    def judge(files: Any, prompts: Any) -> list[float]:
        asked.extend(files)
        return [float(tiny_judge(load_audio(f)[0][None], 16_000, [p])) for f, p in zip(files, prompts, strict=True)]

    votes = read_votes(path, judge)
    assert [file.name for file in asked] == ["0.wav", "1.wav", "2.wav"]
    assert votes[0].reward_b == votes[1].reward_a and votes[0].reward_a != votes[0].reward_b
    output = tmp_path / "c.json"
    assert calibrate(path, "--reward", tiny_directory, "--device", "cpu", "--output", output)[0] == 0
    calibration = AnchorCalibration.load(output)
    assert calibration.reward == "tiny"
    assert calibration.posterior.mean == pytest.approx(fit_anchors(votes).posterior.mean, abs=1e-5)


def test_command_writes_and_prints_the_calibration(calibrate: Any, votes_file: Path, tmp_path: Path) -> None:
    code, out, err = calibrate(votes_file, "--output", tmp_path / "c.json", "--reference-system", "z", "--json")
    assert code == 0
    calibration = AnchorCalibration.load(tmp_path / "c.json")
    assert calibration == fit_anchors(read_votes(votes_file), reference_system="z")
    summary = json.loads(out)
    assert [row["system"] for row in summary["systems"]] == ["x", "y", "z"]
    assert summary["systems"][2]["offset"] == {"value": 0, "low": 0, "high": 0}
    assert summary["systems"][0]["offset"]["value"] == calibration.offset("x").value
    assert summary["systems"][0]["more_votes"] > 100
    code, out, _ = calibrate(votes_file, "--method", "published")
    assert code == 0 and len(out.splitlines()) == 6 and "scale 1.00" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        (HEADER, "holds no rows"),
        (HEADER + ROWS + "9,x,y,left,0,0\n", ":7: unknown winner 'left'"),
        (HEADER + ROWS + ROWS, "was there already"),
        (HEADER + ROWS + "9,x,y,a,,0\n", ":7: a reward is missing"),
        (HEADER + ROWS + "9,x,y,a,nan,0\n", "expected a finite number"),
        (HEADER + ROWS + "9,x,,a,1,0\n", "pair '9' does not name its systems"),
        (HEADER + ROWS + "9,v,w,a,1,0\n", "2 groups of systems uncompared: x, y, z | v, w;"),
        ("battle_id,winner\n1,a\n", "expected columns system_a and system_b"),
        ("system_a,system_b,winner\nx,y,a\n", "clip A is missing"),
        (HEADER + '1,"x', "CSV"),
    ],
)
def test_bad_votes_are_one_line(calibrate: Any, tmp_path: Path, content: str, message: str) -> None:
    path, output = tmp_path / "votes.csv", tmp_path / "c.json"
    path.write_text(content)
    code, out, err = calibrate(path, "--output", output)
    assert (code, out) == (2, "") and not output.exists()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_missing_file_and_folder(calibrate: Any, votes_file: Path, tmp_path: Path) -> None:
    for arguments in ((tmp_path / "none.csv",), (votes_file, "--output", tmp_path / "none" / "c.json")):
        code, out, err = calibrate(*arguments)
        assert (code, out) == (2, "") and err.startswith("error: ") and str(tmp_path / "none") in err


def test_held_out_votes_are_not_fitted() -> None:
    """A vote's own outcome does not move its probability, nor do those of votes on its prompt."""
    generator = np.random.default_rng(0)
    votes = [
        PreferencePair(
            str(place), float(generator.integers(0, 2)), prompt=f"p{place // 2}", system_a="ab"[place % 2],
            system_b="c", reward_a=float(generator.normal()), reward_b=0.0,
        )
        for place in range(40)
    ]  # fmt: skip
    probabilities = held_out_probabilities(votes, "c")
    assert probabilities["raw"] == pytest.approx([1 / (1 + np.exp(-(v.reward_a or 0.0))) for v in votes])
    for place in (0, 17):
        changed = list(votes)
        for other in (place, place ^ 1):
            changed[other] = PreferencePair(**{**vars(votes[other]), "target": 1 - votes[other].target})
        again = held_out_probabilities(changed, "c")
        for method in ("published", "anchors"):
            assert again[method][place] == pytest.approx(probabilities[method][place], abs=1e-12)
            assert not np.allclose(again[method], probabilities[method], atol=1e-6)
    with pytest.raises(InputError, match="21 folds of 20 prompts"):
        held_out_probabilities(votes, "c", num_folds=21)


def test_folds_are_silent_and_may_hold_ties_alone(caplog: pytest.LogCaptureFixture) -> None:
    votes = [
        replace(pair("a", "b", 0.5 if place else 1.0), pair_id=str(place), prompt=str(place)) for place in range(6)
    ]
    probabilities = held_out_probabilities(votes, "b", num_folds=6)
    assert not caplog.text and probabilities["published"][0] == 0.5 < probabilities["published"][1]
    fit_anchors(votes[:1])
    assert "won, or lost, every one of their votes" in caplog.text


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_are_said(calibrate: Any, mark: str, tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text((HEADER + ROWS).replace(",", mark))
    code, _, err = calibrate(tmp_path / "votes.csv")
    assert code == 2 and err.endswith(f"columns are separated by {mark!r}, expected commas\n") and err.count("\n") == 1


def test_copies_of_a_battle_fall_into_one_fold_and_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A copy with sides swapped is one too; two voters who disagree on a pair are not copies."""
    rows = ["x,y,a,0.5,0.1", "y,x,b,0.1,0.5", "x,y,b,0.5,0.1", "x , y,a,0.5,0.1", "x,y,a,0.5,0.2"]
    rows += ["x,x,a,1,0", "x,x,b,0,1"]
    path = tmp_path / "votes.csv"
    path.write_text("\n".join(["system_a,system_b,winner,reward_a,reward_b", *rows]) + "\n")
    votes = read_votes(path)
    assert "3 of 7 votes repeat earlier ones" in caplog.text
    assert {system for vote in votes for system in (vote.system_a, vote.system_b)} == {"x", "y"}
    with pytest.raises(InputError, match="4 folds of 3 prompts"):
        held_out_probabilities(votes, "x", num_folds=4)
    caplog.clear()
    path.write_text(HEADER + ROWS)
    read_votes(path)
    assert not caplog.text


@pytest.mark.skipif(not DATA.is_dir(), reason="the public votes are not here (../shared/data/music_arena)")
def test_published_row_and_the_default_beside_it() -> None:
    votes = {vote.pair_id: vote for vote in read_votes(DATA / "postcutoff_scored.csv")}
    ids = json.loads((DATA / "postcutoff_febmar_ids.json").read_text())["new_uuids"]
    ids = [name for name in ids if name in votes]
    printed, losses = [], []
    for count in (0, 3, 10, 30, 100, 250):
        accuracies = []
        for seed in range(5):
            shuffled = list(ids)
            random.Random(seed).shuffle(shuffled)
            train, test = [votes[name] for name in shuffled[:count]], [votes[name] for name in shuffled[299:598]]
            margins = [(vote.reward_a or 0.0) - (vote.reward_b or 0.0) for vote in test]
            sides = [vote.system_a for vote in test], [vote.system_b for vote in test]
            outcomes = [vote.target for vote in test]
            published = fit_published(train, reference_system="sonauto-v2-2", allow_disconnected=True)
            probabilities = published.win_probabilities(margins, *sides)
            accuracies.append(100 * pairwise_accuracy(probabilities - 0.5, outcomes))
            if seed == 0:
                ours = fit_anchors(train, allow_disconnected=True).win_probabilities(margins, *sides)
                losses.append((log_loss(ours, outcomes), log_loss(probabilities, outcomes)))
        printed.append(f"{np.mean(accuracies):.1f}±{np.std(accuracies):.1f}")
    assert printed == ["55.1±2.0", "56.5±2.5", "57.0±2.5", "58.1±2.0", "60.0±2.6", "61.0±1.6"]
    assert all(ours < published for ours, published in losses)
