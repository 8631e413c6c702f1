"""The output directory: what it refuses, what it continues, what a crash leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from alignment.errors import InputError
from alignment.runs import CONFIG, RECORDS, RESULTS, RunDirectory, default_output_directory, versions

SETTINGS = {"seed": 0, "prompts": [["a", "calm"]], "pair": (1, 2)}


def started(path: Path, settings: dict[str, object] = SETTINGS, *, overwrite: bool = False) -> RunDirectory:
    run = RunDirectory(path, "best_of_n", settings, overwrite=overwrite)
    with run:
        run.start({"versions": versions()})
    return run


def test_other_defaults_are_refused_by_name_until_overwritten(tmp_path: Path) -> None:
    def go_on(steps: int, overwrite: bool = False) -> RunDirectory:
        run = RunDirectory(tmp_path / "run", "ditto", SETTINGS, overwrite=overwrite)
        with run:
            run.start({"versions": versions()}, {"generation": {"steps": steps, "pair": (1, 2)}})
        return run

    assert go_on(16).config["generation"] == {"steps": 16, "pair": [1, 2]}
    go_on(16).append_records([{"candidate": 0}])
    with pytest.raises(InputError, match=r"generation: steps was 16, now 20") as caught:
        go_on(20)
    assert "--overwrite" in str(caught.value) and "\n" not in str(caught.value)
    assert go_on(16).read_records() == [{"candidate": 0}]
    run = go_on(20, overwrite=True)
    assert run.config["generation"]["steps"] == 20 and not run.read_records()


def test_looking_writes_nothing(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "new" / "run", "best_of_n", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_same_settings_continue(tmp_path: Path) -> None:
    first = started(tmp_path / "run")
    config = first.config
    with RunDirectory(tmp_path / "run", "best_of_n", SETTINGS) as run:
        run.append_records([{"candidate": 0}])
        run.start({"versions": {"torch": "0"}})
        assert run.read_records() == [{"candidate": 0}]
        assert run.config == config


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({**SETTINGS, "seed": 1}, "seed was 0, now 1"),
        ({**SETTINGS, "new": 1}, "new was not set, now 1"),
        ({"seed": 0, "pair": (1, 2)}, "prompts was .* now not set"),
        ({**SETTINGS, "prompts": [["a", "c" * 100]]}, "prompts"),
    ],
)
def test_other_settings_are_refused_by_name_until_overwritten(
    tmp_path: Path, settings: dict[str, object], named: str
) -> None:
    with started(tmp_path / "run") as run:
        run.append_records([{"candidate": 0}])
        (run.audio / "a.wav").touch()
        run.write_json(RESULTS, {})
    with pytest.raises(InputError, match=named) as caught:
        RunDirectory(tmp_path / "run", "best_of_n", settings)
    assert "--overwrite" in str(caught.value) and "\n" not in str(caught.value)
    again = started(tmp_path / "run", settings, overwrite=True)
    assert again.config["settings"] == json.loads(json.dumps(settings))
    assert not again.finished and not again.read_records() and not list(again.audio.iterdir())


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with pytest.raises(InputError, match="best_of_n run"):
        RunDirectory(tmp_path / "run", "ditto", SETTINGS)


@pytest.mark.parametrize("content", [None, "[]", '{"model_type": "clap"}'])
def test_a_folder_of_something_else_is_never_touched(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    if content is not None:
        (tmp_path / CONFIG).write_text(content)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="no run of ours"):
            RunDirectory(tmp_path, "best_of_n", SETTINGS, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_overwriting_leaves_foreign_files_alone(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    (run.path / "notes.txt").write_text("x")
    started(tmp_path / "run", {"seed": 5}, overwrite=True)
    assert (run.path / "notes.txt").read_text() == "x"


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(InputError, match=CONFIG):
        RunDirectory(tmp_path, "best_of_n", SETTINGS)


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run", "/dev/null/run"])
def test_places_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        RunDirectory(tmp_path / place, "best_of_n", SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_second_process_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    with started(tmp_path / "run"):
        with pytest.raises(InputError, match="another process"):
            RunDirectory(tmp_path / "run", "best_of_n", SETTINGS).__enter__()
    with RunDirectory(tmp_path / "run", "best_of_n", SETTINGS):
        pass


def test_a_crash_before_the_config_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    for name in (".lock", f".{CONFIG}.1234.tmp"):
        (tmp_path / name).touch()
    run = started(tmp_path)
    assert run.config["settings"]["seed"] == 0
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_failed_writes_leave_the_old_file_and_no_other(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.write_json(RESULTS, {"x": 1})
    with pytest.raises(ValueError):
        run.write_json(RESULTS, {"x": math.nan})
    with pytest.raises(UnicodeEncodeError):
        run.write_text(RESULTS, "\ud800")
    assert run.read_json(RESULTS) == {"x": 1}
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_last_record_cut_short_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.append_records([{"n": 0}, {"n": 1, "prompt": "\u2028"}])
    whole = (tmp_path / RECORDS).read_bytes()
    for cut in range(1, len(whole.split(b"\n")[1])):
        (tmp_path / RECORDS).write_bytes(whole[:-cut])
        assert run.read_records() == [{"n": 0}]
    (tmp_path / RECORDS).write_bytes(b'{"n": 0}\n{"n"\n{"n": 2}\n')
    with pytest.raises(InputError, match=f"{RECORDS}:2"):
        run.read_records()


def test_default_directory_is_the_unfinished_run_of_the_same_command(tmp_path: Path) -> None:
    first = default_output_directory("best_of_n", SETTINGS, tmp_path)
    assert first.parent == tmp_path / "best_of_n"
    run = started(first)
    assert default_output_directory("best_of_n", SETTINGS, tmp_path) == first
    assert default_output_directory("best_of_n", {"seed": 1}, tmp_path) != first
    with run:  # someone is at it
        assert default_output_directory("best_of_n", SETTINGS, tmp_path) != first
        run.write_json(RESULTS, {})
    assert default_output_directory("best_of_n", SETTINGS, tmp_path) != first


def test_a_run_that_came_to_nothing_is_undone_unless_it_is_an_older_one(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", "best_of_n", SETTINGS) as run:
        run.start({})
        run.discard()
    assert not (tmp_path / "run").exists()
    started(tmp_path / "run")
    with RunDirectory(tmp_path / "run", "best_of_n", SETTINGS) as run:
        run.start({})
        run.discard()
    assert run.config
