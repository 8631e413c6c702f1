"""Measuring a judge against votes and ratings, from tables to the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tunejury import InputError, RewardModel, fit_anchors, load_audio, save_audio
from tunejury.cli import main
from tunejury.cmi_rewardbench import TuneJuryBenchmarkModel, benchmark_accuracy, read_cmi_rewardbench
from tunejury.evaluation import (
    judge_clips,
    judge_pairs,
    pair_report,
    rating_report,
)
from tunejury.metrics import log_loss, pairwise_accuracy
from tunejury.preferences import PreferencePair, read_pairs
from tunejury.ratings import RatedClip, read_ratings
from tunejury.scoring import score_files

MUSIC_ARENA = Path(__file__).parents[3] / "shared/data/music_arena/postcutoff_scored.csv"


@pytest.fixture
def clips(music: Callable[..., Tensor], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"clip{seed}.wav" for seed in range(4)]
    for seed, path in enumerate(paths):
        save_audio(path, music(seed, 16_000, 0.3), 16_000)
    return paths


@pytest.fixture
def evaluate(tiny_directory: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """evaluate(arguments...) -> (exit code, standard output, standard error) with the small judge."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["evaluate", *map(str, arguments), "--reward", str(tiny_directory), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(number: int, margin: float, target: float, source: str = "s") -> PreferencePair:
    return PreferencePair(str(number), target, f"prompt {number}", source=source, reward_a=margin, reward_b=0.0)


# reports


def test_pair_report_leaves_ties_out_and_counts_them() -> None:
    pairs = [pair(0, 1.0, 1.0), pair(1, -2.0, 1.0), pair(2, -1.0, 0.0), pair(3, 5.0, 0.5), pair(4, 0.5, 1.0, "t")]
    report = pair_report(pairs, num_resamples=50)
    assert (report["num_pairs"], report["num_ties"], report["accuracy"]) == (5, 1, 0.75)
    p = 1 / (1 + np.exp(-np.array([1.0, 2.0 * -1, 1.0, 0.5])))  # of the clip that won
    assert report["log_loss"] == pytest.approx(-np.log(p).mean())
    assert report["brier_score"] == pytest.approx(((1 - p) ** 2).mean())
    assert report["by_source"]["s"]["accuracy"] == pytest.approx(2 / 3)
    assert report["by_source"]["t"]["num_pairs"] == 1
    low, high = report["accuracy_ci"]
    assert low <= 0.75 <= high
    json.dumps(report, allow_nan=False)


def test_huge_margins_stay_finite() -> None:
    report = pair_report([pair(0, 1e6, 0.0), pair(1, -1e6, 1.0), pair(2, 1e6, 1.0)], num_resamples=10)
    assert np.isfinite(report["log_loss"]) and report["accuracy"] == pytest.approx(1 / 3)


def test_margin_beyond_numbers_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"pair '1' has rewards 1e\+308 and -1e\+308, expected"):
        pair_report([pair(0, 1.0, 0.0), replace(pair(1, 0.0, 1.0), reward_a=1e308, reward_b=-1e308)])


def test_only_ties_have_no_accuracy() -> None:
    report = pair_report([pair(0, 1.0, 0.5)])
    assert report["accuracy"] is None and report["num_ties"] == 1


def test_place_is_told_from_music() -> None:
    """Votes that always go to A show in the share; the judge's own choices are counted beside."""
    pairs = [pair(i, (-1.0) ** i, 1.0) for i in range(60)]
    position = pair_report(pairs, num_resamples=200)["position"]
    assert position["a_won"] == {"share": 1.0, "ci": [1.0, 1.0]}
    assert position["judge_chose_a"]["share"] == 0.5
    assert position["judge_chose_a"]["ci"][0] < 0.45 and position["judge_chose_a"]["ci"][1] > 0.55


def of_systems(number: int, margin: float, target: float, prompt: str = "") -> PreferencePair:
    a, b = ("x", "y") if number % 2 else ("y", "x")
    return PreferencePair(str(number), target, prompt, system_a=a, system_b=b, reward_a=margin, reward_b=0.0)


def test_intervals_over_groups_are_wider_where_groups_are_alike() -> None:
    """Ten prompts, each judged wholly right or wrong: 200 votes that are worth ten."""
    pairs = [of_systems(i, 1.0, float(i % 10 < 6), f"p{i % 10}") for i in range(200)]
    widths = {
        groups: np.diff(pair_report(pairs, groups=groups)["accuracy_ci"])[0] for groups in ("prompt", "row", "system")
    }
    assert widths["prompt"] > 2 * widths["row"]
    assert widths["system"] == 0  # one pair of systems: nothing to draw anew
    rewards = (2.0, 1.0, 3.0, 5.0, 4.0)
    clips = [
        RatedClip("", f"p{i % 5}", {"mos": i % 5 + i / 100}, f"s{i % 5}", reward=rewards[i % 5]) for i in range(50)
    ]
    spans = {g: np.diff(rating_report(clips, groups=g)["scales"]["mos"]["spearman_ci"])[0] for g in widths}
    assert spans["prompt"] == spans["system"] > 2 * spans["row"]
    for call in (lambda: pair_report([pair(0, 1.0, 1.0)], groups="system"),
                 lambda: rating_report([RatedClip("", "", {"mos": 1.0}, reward=1.0)], groups="system")):  # fmt: skip
        with pytest.raises(InputError, match="does not name its system"):
            call()


def test_calibrated_figures_are_those_of_its_probabilities() -> None:
    generator = np.random.default_rng(0)
    pairs = [of_systems(i, float(generator.normal()), float(generator.integers(2)), f"p{i}") for i in range(80)]
    calibration = fit_anchors(pairs)
    report = pair_report(pairs, calibration=calibration, num_resamples=20)
    sides = [p.system_a for p in pairs], [p.system_b for p in pairs]
    probabilities = calibration.win_probabilities([p.reward_a for p in pairs], *sides)
    outcomes = [p.target for p in pairs]
    assert report["calibrated"]["log_loss"] == pytest.approx(log_loss(probabilities, outcomes))
    assert report["calibrated"]["accuracy"] == pairwise_accuracy(probabilities - 0.5, outcomes)
    assert report["calibrated"]["log_loss"] < report["log_loss"]  # fitted to these very votes
    with pytest.raises(InputError, match="does not name its systems, which a calibration needs"):
        pair_report([pair(0, 1.0, 1.0)], calibration=calibration)


def test_nothing_to_evaluate_is_refused() -> None:
    for call in (pair_report, rating_report):
        with pytest.raises(InputError, match="expected at least one"):
            call([])  # type: ignore[operator]
    with pytest.raises(InputError, match="a reward is missing"):
        pair_report([PreferencePair("0", 1.0)])


def test_rating_report_per_clip_and_per_system() -> None:
    clips = [
        RatedClip("", "", {"mos": float(s) + 0.1 * k, **({"fun": 3.0} if k else {})}, f"system{s}", reward=2.0 * s - k)
        for s in range(4)
        for k in range(3)
    ]
    report = rating_report(clips, num_resamples=50)
    mos = report["scales"]["mos"]
    assert mos["num_clips"] == 12 and 0.5 < mos["spearman"] < 1
    assert mos["num_systems"] == 4 and mos["by_system"]["spearman"] == pytest.approx(1)
    assert mos["spearman_ci"][0] <= mos["spearman"] <= mos["spearman_ci"][1]
    fun = report["scales"]["fun"]
    assert fun["num_clips"] == 8 and fun["spearman"] is None  # all ratings equal
    json.dumps(report, allow_nan=False)


def test_every_clip_is_judged_once_for_each_prompt() -> None:
    asked: list[tuple[str, str]] = []

    def judge(files: Sequence[Path], prompts: Sequence[str]) -> list[float]:
        asked.extend(zip(map(str, files), prompts, strict=True))
        return [float(len(prompt)) for prompt in prompts]

    pairs = [
        PreferencePair("0", 1.0, "ab", "x", "y"),
        PreferencePair("1", 1.0, "ab", "y", "x"),
        PreferencePair("2", 1.0, "c", "x", "z", reward_b=9.0),
    ]
    judged = judge_pairs(pairs, judge)
    assert sorted(asked) == [("x", "ab"), ("x", "c"), ("y", "ab")]
    assert [(p.reward_a, p.reward_b) for p in judged] == [(2.0, 2.0), (2.0, 2.0), (1.0, 9.0)]
    assert judge_clips([RatedClip("x", "abc", {}), RatedClip("x", "", {}, reward=1.0)], judge)[0].reward == 3.0


# tables


def test_ratings_are_the_columns_of_numbers(clips: list[Path], tmp_path: Path) -> None:
    rows = [{"path": clip.name, "prompt": "calm", "model": "m", "mos": str(i), "note": "good", "other": None}
            for i, clip in enumerate(clips)]  # fmt: skip
    rows[1]["mos"] = ""
    read = read_ratings(table(tmp_path / "ratings.jsonl", rows))
    assert [clip.ratings for clip in read] == [{"mos": 0.0}, {}, {"mos": 2.0}, {"mos": 3.0}]
    assert read[0].audio == str(clips[0]) and read[0].system == "m" and read[0].source == "ratings"


@pytest.mark.parametrize(
    ("row", "scales", "message"),
    [
        ({"audio": "no.wav", "mos": 1}, (), "no.wav does not exist"),
        ({"mos": 1}, (), "neither a clip nor a reward"),
        ({"reward": 1, "mos": "good"}, (), "has no column of ratings"),
        ({"reward": 1, "mos": "good"}, ("mos",), "mos is 'good'"),
        ({"reward": 1, "mos": 2}, ("fun",), "no column 'fun'"),
        ({"reward": "high", "mos": 2}, (), "reward is 'high'"),
    ],
)
def test_bad_ratings_are_one_line(tmp_path: Path, row: dict[str, Any], scales: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_ratings(table(tmp_path / "ratings.jsonl", [row]), scales)


def cmi_rows(clips: list[Path]) -> list[dict[str, Any]]:
    a, b, c, d = (clip.name for clip in clips)
    return [
        {"source": "PAM_music", "split": "test", "audio-path": a, "prompt": "calm", "musicality": 3.5,
         "text-music alignment": 2},
        {"source": "MusicEval", "split": "test", "audio-path": b, "musicality": 4, "lyrics": "la"},
        {"source": "Music Arena", "split": "test", "audio-path": c, "audio2": d, "prompt": "x", "preference": "both"},
        {"source": "cmi-arena-annotation", "split": "test", "audio-path": a, "audio2": b, "prompt": "drums",
         "preference-musicality": "model_a", "preference-alignment": "B", "ref-audio-path": c},
        {"source": "cmi-arena-annotation", "split": "train", "audio-path": "gone.wav", "audio2": b},
    ]  # fmt: skip


def test_cmi_rewardbench_is_taken_apart(clips: list[Path], tmp_path: Path) -> None:
    bench = read_cmi_rewardbench(table(tmp_path / "all.jsonl", cmi_rows(clips)))
    assert bench.clips["PAM"][0].ratings == {"musicality": 3.5, "text-music alignment": 2.0}
    assert bench.clips["MusicEval"][0].ratings == {"musicality": 4.0}
    targets = {name: [p.target for p in pairs] for name, pairs in bench.pairs.items()}
    assert targets == {"MusicArena preference": [0.5], "CMI-Pref musicality": [1.0], "CMI-Pref alignment": [0.0]}
    assert (bench.num_with_lyrics, bench.num_with_reference) == (1, 1)
    with pytest.raises(InputError, match="no rows of the split 'dev'"):
        read_cmi_rewardbench(tmp_path / "all.jsonl", split="dev")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "elsewhere"}, "unknown source 'elsewhere'"),
        ({"preference-musicality": "first"}, "unknown preference-musicality 'first'"),
        ({"audio2": "no.wav"}, "no.wav does not exist"),
    ],
)
def test_bad_cmi_row_is_one_line(clips: list[Path], tmp_path: Path, change: dict[str, str], message: str) -> None:
    row = {**cmi_rows(clips)[3], **change}
    with pytest.raises(InputError, match=message):
        read_cmi_rewardbench(table(tmp_path / "all.jsonl", [row]))


def test_benchmark_accuracy_gives_half_for_both() -> None:
    assert benchmark_accuracy([pair(0, 1.0, 1.0), pair(1, 1.0, 0.0), pair(2, 1.0, 0.5), pair(3, 0.0, 0.0)]) == 0.625


def test_benchmark_model_gives_the_judge_s_rewards(
    tiny_directory: Path, tiny_judge: RewardModel, clips: list[Path]
) -> None:
    model = TuneJuryBenchmarkModel(str(tiny_directory), device="cpu", sr=16_000)
    wav, _ = load_audio(clips[1])
    inputs = [
        SimpleNamespace(audio=str(clips[0]), text="calm piano", lyrics="", ref_audio=None),
        {"audio": wav[0], "text": "drums"},
    ]
    scores = model.score_batch(inputs, batch_size=2, max_dur=30.0)
    expected = [
        score_files(tiny_judge, clips[:2], ["calm piano", "drums"]),
        score_files(tiny_judge, clips[:2]),
    ]
    assert scores.shape == (2, 2) and model.sr == 16_000
    assert scores.T.tolist() == pytest.approx(np.array(expected), abs=1e-4)


# the command


def test_votes_are_judged_and_measured(
    evaluate: Any, clips: list[Path], tmp_path: Path, tiny_judge: RewardModel
) -> None:
    rewards = score_files(tiny_judge, clips, ["calm"] * 4)
    rows = [{"prompt": "calm", "audio_a": clips[a].name, "audio_b": clips[b].name,
             "winner": "a" if (rewards[a] > rewards[b]) ^ wrong else "b"}
            for a, b, wrong in ((0, 1, False), (1, 2, False), (2, 3, False), (3, 0, True))]  # fmt: skip
    output = tmp_path / "report.json"
    code, out, err = evaluate(table(tmp_path / "votes.jsonl", rows), "--output", output)
    assert (code, err) == (0, "") and "| all | 4 | 0 | 0.7500 |" in out
    report = json.loads(output.read_text())
    assert report["kind"] == "pairs" and report["reward"] == "tiny" and report["pairs"]["accuracy"] == 0.75
    assert report["protocol"] == tiny_judge.protocol
    assert json.loads(evaluate(tmp_path / "votes.jsonl", "--json")[1]) == report


def test_page_holds_tables_and_plots(evaluate: Any, tmp_path: Path) -> None:
    rows = [
        {"winner": "ab"[i % 2], "reward_a": i / 40, "reward_b": 0, "system_a": "x", "system_b": "<y>"}
        for i in range(40)
    ]
    path, calibration = table(tmp_path / "votes.jsonl", rows), tmp_path / "c.json"
    fit_anchors(read_pairs(path, needs="rewards")).save(calibration)
    page, output = tmp_path / "page.html", tmp_path / "figures.json"
    code, out, err = evaluate(path, "--report", page, "--output", output, "--calibration", calibration)
    assert (code, err) == (0, "") and "| all, calibrated | 40 | 0 |" in out
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 and "http" not in text and "all, calibrated" in text
    assert json.loads(output.read_text())["calibration"] == str(calibration)
    ratings = [{"reward": i, "mos": i % 7, "system": f"<s{i % 3}>"} for i in range(30)]
    assert evaluate(table(tmp_path / "ratings.jsonl", ratings), "--report", page)[0] == 0
    assert "sides:" not in out
    assert "sides: A won 0.0%" in evaluate(table(tmp_path / "b.jsonl", [{**row, "winner": "b"} for row in rows]))[1]
    assert page.read_text().count("data:image/png;base64,") == 1 and "Spearman by system" in page.read_text()
    assert evaluate(tmp_path / "ratings.jsonl", "--calibration", calibration)[2].startswith("error: ")


def test_ratings_are_judged_and_measured(
    evaluate: Any, clips: list[Path], tmp_path: Path, tiny_judge: RewardModel
) -> None:
    rewards = score_files(tiny_judge, clips)
    rows = [{"audio": c.name, "prompt": "calm", "mos": 2 * r + 1} for c, r in zip(clips, rewards, strict=True)]
    code, out, _ = evaluate(table(tmp_path / "ratings.jsonl", rows), "--ignore-prompts", "--json")
    report = json.loads(out)
    assert code == 0 and report["kind"] == "ratings" and report["prompts"] is False
    assert report["ratings"]["scales"]["mos"]["spearman"] == pytest.approx(1)


def test_cmi_rewardbench_is_judged_and_measured(evaluate: Any, clips: list[Path], tmp_path: Path) -> None:
    path = table(tmp_path / "all.jsonl", cmi_rows(clips))
    report = json.loads(evaluate(path, "--json")[1])
    assert report["kind"] == "cmi-rewardbench"
    assert report["benchmark_accuracy"]["MusicArena preference"] == 0.5
    assert set(report["ratings_by_dataset"]) == {"PAM", "MusicEval"} and report["pairs"]["num_ties"] == 1
    code, out, _ = evaluate(path)
    assert code == 0 and "| PAM musicality | 1 |" in out and "| CMI-Pref musicality | 1 |" in out


@pytest.mark.skipif(not MUSIC_ARENA.exists(), reason=f"Music Arena's table is not at {MUSIC_ARENA}")
def test_real_votes_with_rewards_need_no_judge(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(MUSIC_ARENA), "--reward", "no such judge", "--json"]) == 0
    assert round(json.loads(capsys.readouterr().out)["pairs"]["accuracy"], 4) == 0.5369
    musiccaps = MUSIC_ARENA.parents[1] / "published/musiccaps_teacher_vs_human.csv"
    assert main(["evaluate", str(musiccaps), "--ratings", "CE", "CU", "PQ", "--json"]) == 0
    scales = json.loads(capsys.readouterr().out)["ratings"]["scales"]
    assert [round(scales[name]["spearman"], 3) for name in scales] == [0.663, 0.595, 0.533]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "does not exist"),
        ("", [], "holds no rows"),
        ('{"winner": "a", "audio_a": "no.wav", "audio_b": "no.wav"}', [], "no.wav does not exist"),
        ('{"winner": "x", "reward_a": 1, "reward_b": 2}', [], "unknown winner 'x'"),
        ('{"audio": "no.wav", "mos": 1}', [], "no.wav does not exist"),
        ('{"winner": "a", "reward_a": 1, "reward_b": 2}', ["--output", "/no/such/folder/x.json"], "is no folder"),
        ('{"winner": "a", "reward_a": 1, "reward_b": 2}', ["--report", "."], "is a folder"),
        ('{"vote": "a", "mos": 2}', [], "holds neither votes (a column winner) nor ratings"),
        ('{"winner": "a", "reward_a": 1, "reward_b": 2}', ["--intervals-over", "system"], "does not name its systems"),
        ('{"winner": "a", "reward_a": 1, "reward_b": 2}', ["--calibration", "no.json"], "no.json does not exist"),
    ],
)
def test_mistakes_are_one_line(
    evaluate: Any, tmp_path: Path, content: str | None, options: list[str], message: str
) -> None:
    path = tmp_path / "table.jsonl"
    if content is not None:
        path.write_text(content)
    code, out, err = evaluate(path, *options)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_adapter_needs_no_gradient(tiny_directory: Path) -> None:
    model = TuneJuryBenchmarkModel(str(tiny_directory), device="cpu")
    scores = model.score_batch([{"audio": torch.zeros(2, 2400, requires_grad=True), "text": ""}], batch_size=1)
    assert scores[0, 0] == scores[0, 1]
