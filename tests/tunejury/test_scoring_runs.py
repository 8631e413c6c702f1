"""Scoring many files: manifests, tables that survive a kill, the embedding cache."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tunejury import InputError, RewardModel, load_reward
from tunejury.cli import main
from tunejury.command_score import write_scores
from tunejury.embedding_cache import EmbeddingCache
from tunejury.manifest import Item
from tunejury.scoring import find_items, plan_batches, score_files


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
