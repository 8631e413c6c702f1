"""The store of embeddings, and the rewards assembled around a head trained on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tunejury import InputError, RewardModel, load_audio, load_reward, save_audio
from tunejury.assembly import assemble_reward, block_label, select_blocks
from tunejury.config import RewardConfig
from tunejury.embedding_cache import SHARD_ROWS, EmbeddingCache, content_digest
from tunejury.features import FeatureStore
from tunejury.head import RewardHead
from tunejury.preferences import PreferencePair
from tunejury.releases import excluded_blocks, read_blocks, read_head, save_head
from tunejury.scoring import score_files
from tunejury.training import merge_heads

PROMPTS = ("calm piano", "", "drums")


@pytest.fixture
def clips(music: Callable[..., Tensor], tmp_path: Path) -> list[Path]:
    """Five clips of two lengths and two rates."""
    paths = []
    for seed, (rate, seconds) in enumerate([(16_000, 0.5), (16_000, 0.5), (22_050, 0.4), (16_000, 0.3), (22_050, 0.4)]):
        paths.append(tmp_path / f"clip{seed}.wav")
        save_audio(paths[-1], music(seed, rate, seconds), rate)
    return paths


@pytest.fixture
def pairs(clips: list[Path]) -> list[PreferencePair]:
    """A clip in several pairs, with different prompts."""
    places = [(0, 1, 0, 1.0), (1, 2, 0, 0.0), (0, 3, 1, 0.5), (4, 0, 2, 1.0)]
    return [
        PreferencePair(str(i), target, PROMPTS[p], str(clips[a]), str(clips[b]))
        for i, (a, b, p, target) in enumerate(places)
    ]


class Counting:
    """Counts the clips a model embeds."""

    def __init__(self, model: RewardModel) -> None:
        self.clips = 0
        model.encoders["audio"].register_forward_hook(self)

    def __call__(self, module: object, inputs: tuple[Tensor], output: Tensor) -> None:
        self.clips += len(inputs[0])


@pytest.fixture
def judge(tiny_directory: Path) -> RewardModel:
    return load_reward(tiny_directory, device="cpu")


def test_features_of_pairs_are_those_of_the_judge(
    judge: RewardModel, pairs: list[PreferencePair], clips: list[Path], tmp_path: Path
) -> None:
    """A head on stored features gives the rewards `forward` gives."""
    store = FeatureStore(tmp_path / "store", judge)
    assert store.add(clips, PROMPTS, batch_size=3) == []
    made = store.pair_set(pairs)
    rewards = judge.head(made.features)
    for place, pair in enumerate(pairs):
        for index, path in ((made.a, pair.audio_a), (made.b, pair.audio_b)):
            wav, rate = load_audio(path)
            expected = judge(wav[None], rate, [pair.prompt])
            torch.testing.assert_close(rewards[index[place]][None], expected, rtol=0, atol=1e-5)
    assert made.target.tolist() == [1.0, 0.0, 0.5, 1.0]
    # clip 0 with one prompt is one row
    assert made.a[0] != made.a[2] and len(made.features) == 7


def test_nothing_is_embedded_twice(judge: RewardModel, clips: list[Path], tmp_path: Path) -> None:
    counting = Counting(judge)
    FeatureStore(tmp_path / "store", judge).add(clips[:3], PROMPTS)
    assert counting.clips == 3
    store = FeatureStore(tmp_path / "store", judge)
    told: list[int] = []
    renamed = tmp_path / "renamed.wav"
    clips[0].rename(renamed)
    assert store.add([renamed, *clips[1:]], PROMPTS, progress=told.append) == []
    assert counting.clips == 5 and sum(told) == 5
    before = sorted(path.name for path in (tmp_path / "store").rglob("*"))
    store.add([renamed, *clips[1:]], PROMPTS)
    assert counting.clips == 5 and sorted(path.name for path in (tmp_path / "store").rglob("*")) == before


def test_changed_file_is_embedded_anew(
    judge: RewardModel, clips: list[Path], noise: Callable[..., Tensor], tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path / "store", judge)
    store.add(clips[:1])
    first = store.clip_embeddings(clips[:1], "audio")
    save_audio(clips[0], noise(), 16_000)
    again = FeatureStore(tmp_path / "store", judge)
    with pytest.raises(InputError, match="not embedded yet"):
        again.clip_embeddings(clips[:1], "audio")
    again.add(clips[:1])
    assert not torch.equal(again.clip_embeddings(clips[:1], "audio"), first)


def test_stopped_run_goes_on(judge: RewardModel, clips: list[Path], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(number: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        FeatureStore(tmp_path / "store", judge).add(clips, batch_size=1, progress=stop)
    counting = Counting(judge)
    store = FeatureStore(tmp_path / "store", judge)
    store.add(clips, batch_size=1)
    assert counting.clips == len(clips) - 1
    whole = FeatureStore(tmp_path / "whole", judge)
    whole.add(clips)
    torch.testing.assert_close(
        store.clip_embeddings(clips, "audio"), whole.clip_embeddings(clips, "audio"), rtol=0, atol=1e-5
    )


def test_shards_are_bounded_and_can_be_copied_together(
    judge: RewardModel, music: Callable[..., Tensor], tmp_path: Path
) -> None:
    prompts = [f"calm {i}" for i in range(SHARD_ROWS + 1)]
    FeatureStore(tmp_path / "one", judge).add([], prompts)
    shards = list((tmp_path / "one").rglob("*.safetensors"))
    assert len(shards) == 2
    FeatureStore(tmp_path / "two", judge).add([], ["drums"])
    for shard in shards:
        (tmp_path / "two" / shard.relative_to(tmp_path / "one")).write_bytes(shard.read_bytes())
    save_audio(tmp_path / "x.wav", music(), 16_000)
    store = FeatureStore(tmp_path / "two", judge)
    store.add([tmp_path / "x.wav"])
    clip = str(tmp_path / "x.wav")
    assert len(store.pair_set([PreferencePair("0", 1.0, p, clip, clip) for p in ("drums", *prompts)])) == 258


def test_scoring_and_training_share_one_store(judge: RewardModel, clips: list[Path], tmp_path: Path) -> None:
    score_files(judge, clips[:3], cache=EmbeddingCache(tmp_path / "store", judge))
    counting = Counting(judge)
    store = FeatureStore(tmp_path / "store", judge)
    store.add(clips)
    assert counting.clips == 2
    score_files(judge, clips, cache=EmbeddingCache(tmp_path / "store", judge))
    assert counting.clips == 2


def test_what_is_held_is_found_and_written_in_time(
    judge: RewardModel, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    cache = EmbeddingCache(folder, judge)
    with torch.no_grad():
        embedded = {name: rows[0] for name, rows in judge.encode_audio(load_audio(clips[0])[0][None], 16_000).items()}
    first, second = content_digest(clips[0]), content_digest(clips[1])
    cache.put(first, embedded)
    assert first in cache and not list(folder.rglob("*.safetensors"))
    torch.testing.assert_close(cache.get(first), embedded)
    monkeypatch.setattr("tunejury.embedding_cache.SECONDS_HELD", 0.0)
    cache.put(second, {"audio": embedded["audio"] + 1})
    again = EmbeddingCache(folder, judge)
    torch.testing.assert_close(again.get(first), embedded)
    both = torch.stack([embedded["audio"] + 1, embedded["audio"]])
    torch.testing.assert_close(again.stack([second, first])["audio"], both)
    with pytest.raises(InputError, match="'audio' gives embeddings that are not finite"):
        cache.put(first, {"audio": embedded["audio"] * float("nan")})


def test_bad_clips_are_reported_and_the_others_kept(judge: RewardModel, clips: list[Path], tmp_path: Path) -> None:
    clips[1].write_text("not audio")
    missing = tmp_path / "no.wav"
    store = FeatureStore(tmp_path / "store", judge)
    told: list[int] = []
    failed = store.add([*clips, missing], progress=told.append)
    assert {failure.path for failure in failed} == {str(clips[1]), str(missing)}
    assert all("\n" not in failure.reason and failure.path in failure.reason for failure in failed)
    assert sum(told) == 6
    assert len(store.clip_embeddings([clip for clip in clips if clip != clips[1]], "audio")) == 4


def test_other_encoders_find_nothing(judge: RewardModel, clips: list[Path], tmp_path: Path) -> None:
    FeatureStore(tmp_path / "store", judge).add(clips[:1], ["drums"])
    counting = Counting(judge)
    next(judge.encoders["audio"].parameters()).add_(0.1)
    store = FeatureStore(tmp_path / "store", judge)
    with pytest.raises(InputError, match="is not embedded yet"):
        store.clip_embeddings(clips[:1], "audio")
    store.add(clips[:1], ["drums"])
    assert counting.clips == 1


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_damaged_shard_is_said_and_its_clips_heard_anew(
    judge: RewardModel, clips: list[Path], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "store"
    store = FeatureStore(directory, judge)
    store.add(clips[:2])
    expected = store.clip_embeddings(clips[:2], "audio")
    shard = next(directory.rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-5] if damage == "cut" else save({"x": torch.zeros(2)}))
    again = FeatureStore(directory, judge)
    assert f"{shard} is damaged" in caplog.text
    assert again.add(clips[:2]) == []
    torch.testing.assert_close(again.clip_embeddings(clips[:2], "audio"), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(FeatureStore(directory, judge).clip_embeddings(clips[:2], "audio"), expected)


# what a head is trained on


def test_blocks_are_chosen_by_label(tiny_config: RewardConfig) -> None:
    assert [block_label(block) for block in tiny_config.inputs] == ["audio", "text", "audio*text"]
    config, columns = select_blocks(tiny_config, ["audio*text", "audio"])
    assert [block.kind for block in config.inputs] == ["audio", "product"]
    assert columns.tolist() == [*range(12), *range(20, 28)]
    config, columns = select_blocks(tiny_config, ["text"])
    assert list(config.encoders) == ["text"] and columns.tolist() == list(range(12, 20))
    assert select_blocks(tiny_config)[0] == tiny_config
    with pytest.raises(InputError, match=r"unknown input block 'mert', expected some of: audio, text, audio\*text"):
        select_blocks(tiny_config, ["mert"])
    with pytest.raises(InputError, match="no input block"):
        select_blocks(tiny_config, [])


@pytest.mark.parametrize("blocks", [None, ("audio",), ("audio*text",), ("audio", "text")])
def test_assembled_reward_is_its_head_on_the_features(
    judge: RewardModel, music: Callable[..., Tensor], tmp_path: Path, blocks: tuple[str, ...] | None
) -> None:
    _, columns = select_blocks(judge.config, blocks)
    head = RewardHead(len(columns), (5,), 0.3).eval()
    reward = assemble_reward(judge, head, name="mine", license="CC0", blocks=blocks)
    reward.save_pretrained(tmp_path / "mine")
    loaded = load_reward(tmp_path / "mine", device="cpu")
    wav = music()[None]
    features = judge.features(judge.encode_audio(wav, 16_000), judge.encode_prompts(["calm piano"]))[:, columns]
    torch.testing.assert_close(loaded(wav, 16_000, ["calm piano"]), head(features), rtol=1e-5, atol=1e-6)
    assert loaded.config.name == "mine" and loaded.licenses()["mine"] == "CC0"
    assert loaded.config.head.widths == (5,) and loaded.config.head.dropout == pytest.approx(0.3)


def test_head_of_another_size_is_refused(judge: RewardModel) -> None:
    with pytest.raises(InputError, match="takes 5 values, the input blocks give 28"):
        assemble_reward(judge, RewardHead(5, (3,)), name="x", license="y")


# the released format


def test_released_format_round_trip(tmp_path: Path) -> None:
    head = RewardHead(1024, (16, 8), 0.5).eval()
    save_head(head, tmp_path / "A5.pt", exclude=["mert"])
    assert json.loads((tmp_path / "A5.json").read_text()) == {"input_dim": 1024, "exclude": ["mert"]}
    assert set(torch.load(tmp_path / "A5.pt", weights_only=True)) == set(head.state_dict())
    features = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read_head(tmp_path / "A5.pt")(features), head(features))
    assert read_blocks(tmp_path / "A5.pt")[0] == ("clap_audio", "text")
    (tmp_path / "A5.json").unlink()
    with pytest.raises(InputError, match="reads 1024 features and nothing says of which encoders"):
        read_blocks(tmp_path / "A5.pt")


@pytest.mark.parametrize("blocks", [None, ("clap-audio",), ("clap-audio", "clap-text"), ("mert", "clap-text")])
def test_trained_head_comes_back_from_the_released_format(
    released_judge: RewardModel, released_files: dict[str, Path], music: Callable[..., Tensor], tmp_path: Path,
    blocks: tuple[str, ...] | None,
) -> None:  # fmt: skip
    """Trained on released encoders, exported, loaded as a released head: the same reward."""
    config, columns = select_blocks(released_judge.config, blocks)
    heads = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads.append(RewardHead(len(columns), (8, 4)).eval())
    head = merge_heads(heads)
    mine = assemble_reward(released_judge, head, name="mine", license="CC0", blocks=blocks)
    save_head(head, tmp_path / "mine.pt", excluded_blocks(config))
    files = {part: path for part, path in released_files.items() if part != "head"}
    back = load_reward(tmp_path / "mine.pt", device="cpu", files=files)
    assert [block.encoders for block in back.config.inputs] == [block.encoders for block in config.inputs]
    wav = music(0, 44_100, 0.5)[None]
    torch.testing.assert_close(back(wav, 44_100, ["a piano"]), mine(wav, 44_100, ["a piano"]), rtol=0, atol=1e-5)


def test_head_on_other_encoders_has_no_released_form(tiny_config: RewardConfig, released_judge: RewardModel) -> None:
    with pytest.raises(InputError, match="compact-audio.* cannot be written in the released format"):
        excluded_blocks(tiny_config)
    config = released_judge.config
    with pytest.raises(InputError, match="in this order"):
        excluded_blocks(dataclasses.replace(config, inputs=config.inputs[::-1]))


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ('{"input_dim": 7, "exclude": []}', "says 7 input values"),
        ('{"input_dim": 4}', "no list"),
        ('{"exclude": ["clap"]}', "no list"),
        ('{"exclude": 3}', "no list"),
        ("[]", "no list"),
        ("{", "is no description of a head"),
    ],
)
def test_bad_sidecar_is_refused(tmp_path: Path, sidecar: str, message: str) -> None:
    save_head(RewardHead(4, (3,)), tmp_path / "x.pt")
    (tmp_path / "x.json").write_text(sidecar)
    with pytest.raises(InputError, match=message):
        read_blocks(tmp_path / "x.pt")


def test_released_head_goes_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends in .pt"):
        save_head(RewardHead(4, (3,)), tmp_path / "x.bin")
    with pytest.raises(InputError, match="no list"):
        save_head(RewardHead(4, (3,)), tmp_path / "x.pt", exclude=["piano"])
    assert not list(tmp_path.iterdir())
