"""Reading votes and splitting them."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunejury.errors import InputError
from tunejury.preferences import PreferencePair, leave_one_source_out, read_pairs, split_pairs

MUSIC_ARENA = Path(__file__).parents[3] / "shared/data/music_arena/postcutoff_scored.csv"

ROWS: list[dict[str, Any]] = [
    {"prompt": "calm piano", "audio_a": "x.wav", "audio_b": "y.wav", "winner": "a", "system_a": "s", "system_b": "t"},
    {"prompt": "", "audio_a": "y.wav", "audio_b": "sub/z.wav", "winner": "b", "system_a": "t", "system_b": "u"},
    {"prompt": "drums, é", "audio_a": "x.wav", "audio_b": "x.wav", "winner": "tie", "system_a": "s", "system_b": "s"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("x.wav", "y.wav", "sub/z.wav"):
        (tmp_path / name).touch()
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_every_format_gives_the_same_pairs(folder: Path, suffix: str) -> None:
    pairs = read_pairs(write(folder / f"votes{suffix}", ROWS))
    assert [pair.target for pair in pairs] == [1.0, 0.0, 0.5]
    assert [pair.is_tie for pair in pairs] == [False, False, True]
    assert pairs[0] == PreferencePair(
        "0", 1.0, "calm piano", str(folder / "x.wav"), str(folder / "y.wav"), "s", "t", source="votes"
    )
    assert pairs[2].prompt == "drums, é" and pairs[1].audio_b == str(folder / "sub" / "z.wav")


def test_columns_of_the_reference(folder: Path) -> None:
    rows = [
        {"battle_uuid": "u1", "prompt": "p", "a_audio": "x.wav", "b_audio": "y.wav", "winner": "model_b",
         "dataset": "AIME"},
        {"battle_uuid": "u2", "prompt": "p", "a_audio": "x.wav", "b_audio": "y.wav", "winner": " Draw ",
         "dataset": "AIME"},
    ]  # fmt: skip
    pairs = read_pairs(write(folder / "pairs.csv", rows))
    assert [(p.pair_id, p.target, p.source) for p in pairs] == [("u1", 0.0, "AIME"), ("u2", 0.5, "AIME")]


@pytest.mark.skipif(not MUSIC_ARENA.exists(), reason=f"Music Arena's table is not at {MUSIC_ARENA}")
def test_real_votes_read(folder: Path) -> None:
    pairs = read_pairs(MUSIC_ARENA, needs="rewards")
    assert len(pairs) == 799 and not any(pair.is_tie for pair in pairs)
    agree = sum((pair.reward_a > pair.reward_b) == (pair.target == 1) for pair in pairs)  # type: ignore[operator]
    assert round(agree / 799, 4) == 0.5369


def test_audio_root_and_absolute_paths(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    rows = [{**ROWS[0], "audio_b": str(folder / "y.wav")}]
    pairs = read_pairs(write(elsewhere / "votes.jsonl", rows), audio_root=folder)
    assert pairs[0].audio_a == str(folder / "x.wav") and pairs[0].audio_b == str(folder / "y.wav")


def test_order_and_byte_order_mark_and_blank_lines(folder: Path) -> None:
    path = write(folder / "votes.jsonl", ROWS)
    path.write_text("\ufeff" + path.read_text(encoding="utf-8").replace("\n", "\n\n"), encoding="utf-8")
    assert [pair.system_a for pair in read_pairs(path)] == ["s", "t", "s"]


def test_names_of_systems_are_on_one_line(folder: Path) -> None:
    rows = [{**ROWS[0], "system_a": " a\n b ", "system_b": 0}]
    assert [(p.system_a, p.system_b) for p in read_pairs(write(folder / "votes.jsonl", rows))] == [("a b", "0")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": "A wins"}, "votes.jsonl:2: unknown winner 'A wins', expected one of: a, model_a"),
        ({"winner": ""}, "votes.jsonl:2: the vote is missing"),
        ({"winner": None}, "votes.jsonl:2: the vote is missing"),
        ({"winner": 1}, "unknown winner 1"),
        ({"audio_a": "no.wav"}, "no.wav does not exist"),
        ({"audio_b": ""}, "clip B is missing"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"prompt": 3}, "prompt is 3"),
        ({"reward_a": "high"}, "reward_a is 'high'"),
        ({"reward_a": float("nan")}, "reward_a is nan"),
        ({"pair_id": "0"}, "pair '0' was there already in line 1"),
        ({"pair_id": 0}, "pair '0' was there already in line 1"),
        ({"system_a": ["s"]}, "system_a is ['s'], expected a name"),
    ],
)
def test_bad_row_is_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    rows = [ROWS[0], {**ROWS[1], **change}]
    with pytest.raises(InputError) as caught:
        read_pairs(write(folder / "votes.jsonl", rows))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("votes.jsonl", b"", "holds no rows"),
        ("votes.csv", b"prompt,winner\n", "holds no rows"),
        ("votes.json", b"[]", "holds no rows"),
        ("votes.json", b"{}", "expected a list"),
        ("votes.jsonl", b"{}\n", "the vote is missing"),
        ("votes.jsonl", b"[1]\n", ":1: expected an object"),
        ("votes.jsonl", b'{"a": 1\n', ":1: no JSON object"),
        ("votes.jsonl", b"[" * 100_000, ":1: no JSON object"),
        ("votes.json", b"[" * 100_000, "is no JSON"),
        ("votes.jsonl", b"\xff\xfe\x00", "not text in UTF-8"),
        ("votes.json", b"\xff\xfe\x00", "not text in UTF-8"),
        ("votes.csv", b"prompt,winner\na\n", ":2: expected 2 columns"),
        ("votes.csv", b"prompt,winner\na,b,c\n", ":2: expected 2 columns"),
        ("votes.csv", b'prompt,winner\n"a,b', "damaged CSV"),
        ("votes.csv", b"prompt;winner\np;a\n", ":1: columns are separated by ';'"),
        ("votes.jsonl", b'{"winner": "a", "reward_a": 1' + b"0" * 400 + b"}", ":1: reward_a is 10+"),
        ("votes.txt", b"", "expected a file of type .jsonl, .csv, .json"),
    ],
)
def test_bad_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.csv does not exist"):
        read_pairs(tmp_path / "no.csv")


def test_rewards_are_asked_for(folder: Path) -> None:
    with pytest.raises(InputError, match="a reward is missing"):
        read_pairs(write(folder / "votes.jsonl", ROWS), needs="rewards")
    rows = [{"winner": "a", "reward_a": 1.5, "reward_b": "-2"}]
    assert read_pairs(write(folder / "scored.jsonl", rows), needs="rewards")[0].reward_b == -2.0


# splits


def make_pairs(num_prompts: int = 200, per_prompt: int = 5) -> list[PreferencePair]:
    """Two sources of different sizes, several pairs for each prompt."""
    return [
        PreferencePair(
            f"{source}-{i}-{k}", 1.0, f"prompt {i}", f"{source}-{i}-a.wav", f"{source}-{i}-b.wav", source=source
        )
        for source, size in (("arena", num_prompts), ("lab", num_prompts // 4))
        for i in range(size)
        for k in range(per_prompt)
    ]


def test_every_source_is_split_by_itself() -> None:
    pairs = make_pairs()
    splits = split_pairs(pairs, (0.8, 0.1, 0.1))
    assert sorted(p.pair_id for split in splits.values() for p in split) == sorted(p.pair_id for p in pairs)
    for source, size in (("arena", 1000), ("lab", 250)):
        counts = {name: sum(p.source == source for p in split) for name, split in splits.items()}
        assert counts == {"train": 0.8 * size, "validation": 0.1 * size, "test": 0.1 * size}


def test_prompts_and_clips_stay_on_one_side(caplog: pytest.LogCaptureFixture) -> None:
    pairs = make_pairs()
    with caplog.at_level(logging.WARNING):
        splits = split_pairs(pairs)
        assert not caplog.records
        clips = {name: {p.audio_a for p in split} for name, split in splits.items()}
        assert not clips["train"] & clips["test"] and not clips["train"] & clips["validation"]
        split_pairs(pairs, group="pair")
    assert "clips are in both the train and the test split" in caplog.text


def test_split_depends_on_the_seed_and_not_on_the_order() -> None:
    pairs = make_pairs()
    ids = lambda splits: {name: {p.pair_id for p in split} for name, split in splits.items()}  # noqa: E731
    assert ids(split_pairs(pairs, seed=1)) == ids(split_pairs(pairs[::-1], seed=1))
    assert ids(split_pairs(pairs, seed=1)) != ids(split_pairs(pairs, seed=2))


def test_split_of_the_file_stands() -> None:
    pairs = [PreferencePair(str(i), 1.0, "one prompt", split="test" if i % 2 else "train") for i in range(10)]
    splits = split_pairs(pairs, (0.5, 0.0, 0.5))
    assert [p.pair_id for p in splits["test"]] == ["1", "3", "5", "7", "9"] and not splits["validation"]


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_bad_fractions_are_refused(fractions: Any) -> None:
    with pytest.raises(InputError, match="three shares"):
        split_pairs(make_pairs(), fractions)


def test_too_few_pairs_for_the_splits_are_refused() -> None:
    with pytest.raises(InputError, match="leave none for the"):
        split_pairs([PreferencePair("0", 1.0), PreferencePair("1", 1.0)])


def test_leaving_one_source_out() -> None:
    pairs = make_pairs()
    seen = {}
    for source, rest, own in leave_one_source_out(pairs):
        assert {p.source for p in own} == {source} and source not in {p.source for p in rest}
        assert len(rest) + len(own) == len(pairs)
        seen[source] = len(own)
    assert seen == dict(Counter(p.source for p in pairs))
    with pytest.raises(InputError, match="at least two sources"):
        next(leave_one_source_out([p for p in pairs if p.source == "lab"]))
