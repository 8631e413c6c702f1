"""Scoring many files: manifests, tables that survive a kill, the embedding cache, comparing, licences."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tunejury import InputError, RewardModel, fit_anchors, load_reward, save_audio
from tunejury.cli import main
from tunejury.command_score import write_scores
from tunejury.command_verify import PUBLISHED_REWARDS, checksum_row
from tunejury.embedding_cache import EmbeddingCache
from tunejury.manifest import Item
from tunejury.preferences import PreferencePair
from tunejury.scoring import find_items, plan_batches, score_files


@pytest.fixture
def items(music: Callable[..., Tensor], tmp_path: Path) -> list[Item]:
    """Nine clips of three lengths with prompts, in mixed order."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(9):
        save_audio(folder / f"{i}.wav", music(i, 16_000, 0.3 + 0.1 * (i % 3)), 16_000)
    return [Item(folder / f"{i}.wav", ("calm piano", "drums", "")[i % 2]) for i in range(9)]


class Killed(Exception):
    """Stands for the end of a process."""


def test_table_has_a_row_per_item_in_order(tiny_judge: RewardModel, items: list[Item], tmp_path: Path) -> None:
    write_scores(tiny_judge, items, tmp_path / "scores.jsonl", 2, False, None)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(row["path"], row["prompt"]) for row in rows] == [(str(item.path), item.prompt) for item in items]
    alone = [score_files(tiny_judge, [item.path], [item.prompt])[0] for item in items]
    assert [row["reward"] for row in rows] == pytest.approx(alone, abs=1e-5)
    assert all(row["protocol"] == tiny_judge.protocol and row["model"] == "tiny" for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "scores.jsonl"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_run_killed_twice_ends_in_the_same_bytes(
    tiny_judge: RewardModel, items: list[Item], tmp_path: Path, suffix: str
) -> None:
    write_scores(tiny_judge, items, tmp_path / f"whole.{suffix}", 2, False, None)
    output = tmp_path / f"cut.{suffix}"
    for _ in range(2):
        # a run ends where its process does: here, at a clip that raises what nothing catches
        with pytest.raises(Killed):
            write_scores(_Dying(tiny_judge, after=2), items, output, 2, False, None)  # type: ignore[arg-type]
        journal = next(tmp_path.glob(".cut*.partial"))
        with journal.open("a") as file:
            file.write('{"item": 3, "rew')  # cut in the middle of a line
        assert not output.exists()
    write_scores(tiny_judge, items, output, 2, False, None)
    assert output.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not list(tmp_path.glob(".*"))


class _Dying:
    """A judge whose process ends after so many batches."""

    def __init__(self, model: RewardModel, after: int) -> None:
        self._model, self._left = model, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_audio(self, wav: Tensor, sample_rate: int) -> Any:
        if self._left == 0:
            raise Killed
        self._left -= 1
        return self._model.encode_audio(wav, sample_rate)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_finished_table_is_left_alone_and_another_run_refused(
    tiny_judge: RewardModel, items: list[Item], tmp_path: Path, name: str
) -> None:
    output = tmp_path / name
    write_scores(tiny_judge, items, output, 2, False, None)
    before = (output.read_bytes(), output.stat().st_mtime_ns)
    write_scores(tiny_judge, items, output, 2, False, None)
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    with pytest.raises(InputError, match="of another run"):
        write_scores(tiny_judge, items[:-1], output, 2, False, None)
    write_scores(tiny_judge, items[:-1], output, 2, True, None)
    assert output.read_bytes() != before[0]


def test_table_of_other_weights_or_of_older_clips_is_refused(
    tiny_judge: RewardModel, tiny_directory: Path, items: list[Item], tmp_path: Path
) -> None:
    output = tmp_path / "scores.jsonl"
    write_scores(tiny_judge, items, output, 2, False, None)
    retrained = load_reward(tiny_directory, device="cpu")  # of the same name
    retrained.head.net[-1].bias.data.add_(0.5)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="of another run"):
        write_scores(retrained, items, output, 2, False, None)
    os.utime(items[3].path, ns=(0, output.stat().st_mtime_ns + 1))
    with pytest.raises(InputError, match="3.wav was written after"):
        write_scores(tiny_judge, items, output, 2, False, None)
    output.unlink()
    with pytest.raises(Killed):
        write_scores(_Dying(tiny_judge, after=2), items, output, 2, False, None)  # type: ignore[arg-type]
    os.utime(items[3].path, ns=(0, next(tmp_path.glob(".*.partial")).stat().st_mtime_ns + 1))
    with pytest.raises(InputError, match="3.wav was written after"):
        write_scores(tiny_judge, items, output, 2, False, None)
    os.utime(items[3].path, ns=(0, 0))
    with pytest.raises(InputError, match="is of a run with other"):
        write_scores(retrained, items, output, 2, False, None)
    next(tmp_path.glob(".*.partial")).write_text('{"run"\n{"item": 1}\n')
    with pytest.raises(InputError, match="damaged: remove it"):
        write_scores(tiny_judge, items, output, 2, False, None)


def test_bad_file_is_recorded_and_counted(tiny_judge: RewardModel, items: list[Item], tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("not audio")
    listed = [*items[:2], Item(tmp_path / "bad.wav", ""), Item(tmp_path / "none.wav", "")]
    for _ in range(2):  # the second finds the table complete, and is no more content with it
        with pytest.raises(InputError, match="2 of 4 files could not be judged"):
            write_scores(tiny_judge, listed, tmp_path / "scores.csv", 2, False, None)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [bool(row["reward"]) for row in rows] == [True, True, False, False]
    assert "cannot be decoded" in rows[2]["error"] and "does not exist" in rows[3]["error"]
    assert rows[0]["protocol"] == "release/1"


def test_processes_share_the_work_and_give_the_same_table(
    tiny_judge: RewardModel, items: list[Item], tmp_path: Path
) -> None:
    """Two processes in turn: the second one's part is journalled before the first one merges."""
    write_scores(tiny_judge, items, tmp_path / "one.jsonl", 2, False, None)
    write_scores(tiny_judge, items, tmp_path / "two.jsonl", 2, False, None, rank=1, processes=2)
    assert not (tmp_path / "two.jsonl").exists()
    write_scores(tiny_judge, items, tmp_path / "two.jsonl", 2, False, None, rank=0, processes=2)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_two_launched_processes_equal_one(tiny_directory: Path, items: list[Item], tmp_path: Path) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(json.dumps({"path": str(i.path), "prompt": i.prompt}) + "\n" for i in items))
    options = ["--reward", str(tiny_directory), "--batch-size", "2"]
    assert main(["score", str(manifest), "--output", str(tmp_path / "one.jsonl"), *options, "--device", "cpu"]) == 0
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
        "-m", "tunejury.score_collection", str(manifest),
        "--output", str(tmp_path / "two.jsonl"), "--cache", str(tmp_path / "cache"), *options,
    ]  # fmt: skip
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    # each process keeps what it heard in a shard of its own: two have really been at work
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    one, two = ([json.loads(line) for line in (tmp_path / name).open()] for name in ("one.jsonl", "two.jsonl"))
    rewards = [[row.pop("reward") for row in rows] for rows in (one, two)]
    assert one == two
    # a launched process computes with one thread, this one with a thread per core: sums differ in the last digit
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)


# the plan


def test_plan_puts_equal_lengths_together(items: list[Item]) -> None:
    paths = [item.path for item in items]
    batches = plan_batches(paths, 2)
    assert sorted(place for batch in batches for place in batch) == list(range(9))
    assert all(len({place % 3 for place in batch}) == 1 and len(batch) <= 2 for batch in batches)
    assert batches == plan_batches(paths, 2)


# the cache


def test_cached_clip_is_not_heard_again(tiny_judge: RewardModel, items: list[Item], tmp_path: Path) -> None:
    paths, prompts = [item.path for item in items], [item.prompt for item in items]
    first = score_files(tiny_judge, paths, prompts, cache=EmbeddingCache(tmp_path / "cache", tiny_judge))
    deaf = _Dying(tiny_judge, after=0)
    again = score_files(deaf, paths, prompts, cache=EmbeddingCache(tmp_path / "cache", tiny_judge))  # type: ignore[arg-type]
    assert again == pytest.approx(first, abs=1e-6)
    # by content, not by name; prompts are no part of it
    copy = tmp_path / "copy.wav"
    copy.write_bytes(paths[0].read_bytes())
    cache = EmbeddingCache(tmp_path / "cache", tiny_judge)
    assert score_files(deaf, [copy], ["drums"], cache=cache)[0] == pytest.approx(  # type: ignore[arg-type]
        score_files(tiny_judge, [copy], ["drums"])[0], abs=1e-6
    )


def test_cache_of_other_weights_or_damaged_is_not_believed(
    tiny_judge: RewardModel, tiny_directory: Path, items: list[Item], tmp_path: Path
) -> None:
    path = items[0].path
    cache = EmbeddingCache(tmp_path / "cache", tiny_judge)
    expected = score_files(tiny_judge, [path], cache=cache)
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-3])
    assert score_files(tiny_judge, [path], cache=cache) == pytest.approx(expected, abs=1e-6)
    other = load_reward(tiny_directory, device="cpu")
    next(other.encoders["audio"].parameters()).data.add_(0.5)
    with pytest.raises(Killed):
        score_files(_Dying(other, 0), [path], cache=EmbeddingCache(tmp_path / "cache", other))  # type: ignore[arg-type]


# manifests


def test_manifests_folders_and_files_may_be_mixed(items: list[Item], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,path\ncalm,clips/0.wav\n,clips/1.wav\n")
    (tmp_path / "b.jsonl").write_text('{"path": "clips/2.wav"}\n\n{"path": "clips/3.wav", "prompt": "x"}\n')
    found = find_items([tmp_path / "a.csv", items[4].path, tmp_path / "b.jsonl"], "wish")
    assert [(item.path.name, item.prompt) for item in found] == [
        ("0.wav", "calm"), ("1.wav", ""), ("4.wav", "wish"), ("2.wav", "wish"), ("3.wav", "x"),
    ]  # fmt: skip
    assert all(item.path.exists() for item in found) and len(find_items([tmp_path / "clips"])) == 9


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,prompt\nx.wav,\n", "expected a header with path"),
        ("a.csv", "path,prompt\n,x\n", "line 2: expected a path"),
        ("a.jsonl", '{"path": "a.wav"}\n{"path"\n', "line 2 is no JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", '{"path": "a.wav", "prompt": 3}\n', "line 1: expected text as prompt"),
        ("a.jsonl", "\n", "lists no clip"),
    ],
)
def test_bad_manifest_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        find_items([tmp_path / name])


# the other commands


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
