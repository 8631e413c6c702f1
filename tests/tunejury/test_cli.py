"""The `tunejury` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunejury import InputError, RewardModel, load_audio, save_audio
from tunejury.cli import main
from tunejury.scoring import BATCH_SAMPLES, find_audio_files, score_files


@pytest.fixture
def folder(music: Callable[..., Tensor], tmp_path: Path) -> Path:
    """Six clips of three lengths and two rates, in two folders, among other files."""
    folder = tmp_path / "clips"
    (folder / "b").mkdir(parents=True)
    for seed, (name, rate, seconds) in enumerate(
        [
            ("z", 16_000, 1.0),
            ("a", 16_000, 1.0),
            ("c", 44_100, 0.5),
            ("b/a", 16_000, 1.0),
            ("b/c", 44_100, 0.5),
            ("d", 16_000, 2.0),
        ]
    ):
        save_audio(folder / f"{name}.wav", music(seed, rate, seconds), rate)
    (folder / "notes.txt").write_text("not audio")
    save_audio(folder / ".hidden.wav", torch.zeros(1, 8), 16_000)
    return folder


@pytest.fixture
def score(tiny_directory: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """score(arguments...) -> (exit code, standard output, standard error) of `tunejury score` with the small judge."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["score", *map(str, arguments), "--reward", str(tiny_directory), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_json_is_one_list_in_the_order_given(score: Any, folder: Path, tiny_judge: RewardModel) -> None:
    files = [folder / "z.wav", folder / "c.wav", folder / "a.wav"]
    code, out, _ = score(*files, "--prompt", "calm piano", "--json")
    assert code == 0
    results = json.loads(out)
    assert [result["path"] for result in results] == [str(file) for file in files]
    for file, result in zip(files, results, strict=True):
        assert set(result) == {"path", "prompt", "reward", "protocol"}
        assert result["prompt"] == "calm piano" and result["protocol"] == tiny_judge.protocol
        wav, sample_rate = load_audio(file)
        # a file scored in a batch and the array scored alone
        assert result["reward"] == pytest.approx(float(tiny_judge(wav[None], sample_rate, ["calm piano"])), abs=1e-5)


def test_plain_output_is_one_line_per_file(score: Any, folder: Path) -> None:
    code, out, err = score(folder / "z.wav", folder / "a.wav")
    assert code == 0 and err == ""
    lines = [line.split("\t") for line in out.splitlines()]
    assert [path for _, path in lines] == [str(folder / "z.wav"), str(folder / "a.wav")]
    assert all(float(reward) == pytest.approx(float(reward)) for reward, _ in lines)


def test_folder_stands_for_the_audio_in_it(score: Any, folder: Path) -> None:
    _, out, _ = score(folder, "--json")
    names = [Path(result["path"]).relative_to(folder).as_posix() for result in json.loads(out)]
    assert names == ["a.wav", "b/a.wav", "b/c.wav", "c.wav", "d.wav", "z.wav"]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batch_size_does_not_change_rewards(score: Any, folder: Path, batch_size: int) -> None:
    rewards = [result["reward"] for result in json.loads(score(folder, "--json", "--batch-size", batch_size)[1])]
    alone = [json.loads(score(file, "--json")[1])[0]["reward"] for file in find_audio_files([folder])]
    assert rewards == pytest.approx(alone, abs=1e-5)


def test_stereo_file_equals_its_array(tiny_judge: RewardModel, music: Callable[..., Tensor], tmp_path: Path) -> None:
    save_audio(tmp_path / "a.wav", torch.cat([music(0, 44_100), music(1, 44_100)]), 44_100)
    wav, sample_rate = load_audio(tmp_path / "a.wav")
    assert score_files(tiny_judge, [tmp_path / "a.wav"]) == pytest.approx(
        tiny_judge(wav[None], sample_rate).tolist(), abs=1e-5
    )


def test_clips_that_wait_for_a_batch_are_bounded(tiny_judge: RewardModel, tmp_path: Path) -> None:
    """Long files of different lengths, none of which finds a partner, are judged before the last one is read."""
    for i in range(6):
        save_audio(tmp_path / f"{i}.wav", torch.zeros(1, BATCH_SAMPLES // 3 + i), 768_000)
    files = [*find_audio_files([tmp_path]), tmp_path / "missing.wav"]
    judged: list[int] = []
    with pytest.raises(InputError, match="does not exist"):
        score_files(tiny_judge, files, progress=judged.append)
    assert sum(judged) >= 3


# mistakes: one line on standard error, nothing on standard output, exit code 2


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("kind", ["missing", "text", "empty", "cut", "nan", "no audio inside"])
def test_one_bad_file_ends_the_command(score: Any, folder: Path, tmp_path: Path, kind: str, position: int) -> None:
    bad = tmp_path / "bad.wav"
    if kind == "text":
        bad.write_text("this is not audio\n" * 100)
    elif kind == "empty":
        bad.touch()
    elif kind == "cut":
        bad.write_bytes((folder / "z.wav").read_bytes()[:-1_000])
    elif kind == "nan":
        import soundfile

        soundfile.write(bad, [0.0, float("nan")], 16_000, subtype="FLOAT")
    elif kind == "no audio inside":
        bad.mkdir()
    files = [folder / "z.wav", folder / "a.wav"]
    files.insert(position, bad)
    code, out, err = score(*files, "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and str(bad) in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "batch size is 0"),
        (["--protocol", "nonsense"], "expected one of: release"),
        (["--reward", "nonsense"], "expected one of: compact"),
        (["--device", "nonsense"], "device 'nonsense'"),
    ],
)
def test_bad_option_is_one_line(
    folder: Path, tiny_directory: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    chosen = [] if "--reward" in options else ["--reward", str(tiny_directory)]
    assert main(["score", str(folder / "z.wav"), *chosen, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_no_files_is_a_mistake(score: Any) -> None:
    code, out, err = score()
    assert (code, out) == (2, "") and err.startswith("error: no files given")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "score"),
        (["scroe", "a.wav"], "scroe"),
        (["score", "--colour", "a.wav"], "--colour"),
        (["score", "a.wav", "--batch-size", "two"], "--batch-size"),
    ],
)
def test_wrong_usage_exits_with_2_after_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert caught.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and named in captured.err


def test_wrong_usage_is_one_sentence_without_characters_to_draw_with() -> None:
    program = "import sys\nfrom tunejury.cli import main\nmain(['score', '--batch-size', 'two'])\n"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "--batch-size" in done.stderr
    assert done.stderr.startswith("error: Error parsing") and done.stderr.count("\n") == 1 and "---" not in done.stderr


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("none/scores.jsonl", "none does not exist, expected the folder scores.jsonl"),
        ("z.wav/scores.jsonl", "z.wav is a file, expected the folder scores.jsonl"),
        ("z.wav", "z.wav is one of the files to judge"),
        ("z.txt", "expected a name ending in .jsonl or .csv"),
        ("inside.jsonl", "inside.jsonl is a folder"),
        ("list.csv", "list.csv is one of the files to judge"),
        ("/proc/scores.jsonl", "scores.jsonl cannot be written to the folder /proc"),
    ],
)
def test_place_that_cannot_be_written_is_told_before_the_work(
    score: Any, folder: Path, tmp_path: Path, output: str, message: str
) -> None:
    if output.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (folder / "list.csv").write_text("path\nz.wav\n")
    (folder / "inside.jsonl").mkdir()
    code, out, err = score(folder / "list.csv", "--output", folder / output, "--overwrite")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert (folder / "list.csv").read_text() == "path\nz.wav\n" and {path.name for path in folder.glob(".*")} == {
        ".hidden.wav"
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--overwrite"], "expected --output too"), (["--json", "--output", "scores.jsonl"], "expected no --output")],
)
def test_flag_that_would_do_nothing_is_refused(score: Any, folder: Path, flags: list[str], message: str) -> None:
    code, out, err = score(folder / "z.wav", *flags)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_cache_that_cannot_be_is_one_line(score: Any, folder: Path) -> None:
    code, out, err = score(folder / "z.wav", "--cache", folder / "a.wav" / "cache")
    assert (code, out) == (2, "") and "cannot be the folder of a cache" in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"]])
def test_help_waits_for_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom tunejury.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'soundfile'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_mistake() -> None:
    program = "import sys\nfrom tunejury.cli import main\nsys.stdin.read()\nsys.exit(main(['licenses']))"
    command = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdin is not None and command.stdout is not None and command.stderr is not None
    command.stdout.close()
    command.stdin.close()  # only now it writes
    assert command.stderr.read() == b"" and command.wait() == 0
