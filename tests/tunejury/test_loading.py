"""Saving rewards and loading them back; damaged checkpoints."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunejury import InputError, RewardModel, load_reward
from tunejury.loading import HELD_OUT_REWARDS, KNOWN_REWARDS, held_out_reward, load_head


def test_saved_judge_comes_back_the_same(
    tiny_judge: RewardModel, tiny_directory: Path, music: Callable[..., Tensor]
) -> None:
    wav = music(0, 44_100)[None]
    loaded = load_reward(tiny_directory, device="cpu")
    assert torch.equal(loaded(wav, 44_100, ["calm piano"]), tiny_judge(wav, 44_100, ["calm piano"]))
    assert sorted(path.name for path in tiny_directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert loaded.protocol == tiny_judge.protocol and loaded.licenses() == tiny_judge.licenses()
    assert not any(parameter.requires_grad for parameter in loaded.parameters()) and not loaded.training


def test_half_precision_is_for_the_disk_only(
    tiny_judge: RewardModel, tmp_path: Path, music: Callable[..., Tensor]
) -> None:
    tiny_judge.save_pretrained(tmp_path / "half", weights_dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    loaded = load_reward(tmp_path / "half", device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    wav = music(0)[None]
    # float16 keeps 11 bits of each weight
    torch.testing.assert_close(loaded(wav, 16_000), tiny_judge(wav, 16_000), rtol=0, atol=0.05)


def test_weight_beyond_half_precision_is_not_stored_as_infinity(tiny_judge: RewardModel, tmp_path: Path) -> None:
    model = RewardModel(tiny_judge.config)
    model.head.net[1].running_var.fill_(1e6)
    with pytest.raises(InputError, match="net.1.running_var"):
        model.save_pretrained(tmp_path / "half", weights_dtype=torch.float16)
    assert list((tmp_path / "half").iterdir()) == []


def test_float64_is_the_same_judge_more_precisely(
    tiny_judge: RewardModel, tiny_directory: Path, music: Callable[..., Tensor]
) -> None:
    wav = music(0)[None]
    reward = load_reward(tiny_directory, device="cpu", dtype=torch.float64)(wav, 16_000)
    assert reward.dtype == torch.float64
    torch.testing.assert_close(reward.float(), tiny_judge(wav, 16_000), rtol=0, atol=1e-4)


def test_loading_leaves_random_numbers_alone(tiny_directory: Path) -> None:
    state = torch.get_rng_state()
    load_reward(tiny_directory, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)


def test_card_names_licences_and_inputs(tiny_directory: Path, tiny_judge: RewardModel) -> None:
    card = (tiny_directory / "README.md").read_text()
    assert card.startswith("---\n") and all(license in card for license in tiny_judge.licenses().values())


# names


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="unknown reward 'compcat'; expected one of: compact"):
        load_reward("compcat")


def test_known_rewards_state_their_licence() -> None:
    assert all(known.license and known.summary for known in KNOWN_REWARDS.values())


def test_held_out_judge_is_a_shipped_one_that_does_not_drive_unless_told_otherwise() -> None:
    for reward, other in HELD_OUT_REWARDS.items():
        assert other != reward and {reward, other} <= KNOWN_REWARDS.keys()
        assert held_out_reward(None, reward) == held_out_reward(None, "clap-score", reward) == other
        assert held_out_reward(None, reward, other) is None
        assert held_out_reward("none", reward) is None and held_out_reward("mine/", reward) == "mine/"
    assert held_out_reward(None, "mine/") is None and held_out_reward(None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu9"}, "device 'gpu9'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"dtype": torch.float16}, "float32, float64, or bfloat16"),
        ({"protocol": "nonsense"}, "unknown protocol 'nonsense', expected one of: release"),
    ],
)
def test_bad_options_are_named(tiny_directory: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_reward(tiny_directory, **options)


# damage


def _edit_config(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit(config)
    (directory / "config.json").write_text(json.dumps(config))


def _edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(directory / "model.safetensors")
    edit(state)
    save_file(state, directory / "model.safetensors")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors does not exist"),
    "config no json": (lambda d: (d / "config.json").write_text("{not json"), "no reward config"),
    "config binary": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"), "no reward config"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), "expected an object"),
    "config without head": (lambda d: _edit_config(d, lambda c: c.pop("head")), "'head' is missing"),
    "width of text": (lambda d: _edit_config(d, lambda c: c["head"].update(widths=["16"])), "expected a whole number"),
    "unknown kind": (
        lambda d: _edit_config(d, lambda c: c["encoders"]["audio"].update(kind="x")),
        "unknown encoder kind",
    ),
    "unknown field": (lambda d: _edit_config(d, lambda c: c["encoders"]["audio"].update(colour=1)), "cannot be built"),
    "unknown protocol": (lambda d: _edit_config(d, lambda c: c.update(protocol="x")), "unknown protocol 'x'"),
    "other widths": (lambda d: _edit_config(d, lambda c: c["head"].update(widths=[17, 8])), "does not fit its config"),
    "more widths": (
        lambda d: _edit_config(d, lambda c: c["head"].update(widths=[16, 8, 8])),
        "does not fit its config",
    ),
    "sizes beyond any memory": (
        lambda d: _edit_config(d, lambda c: c["encoders"]["text"].update(width=10**6, ngram_buckets=9 * 10**6)),
        "does not fit its config",
    ),
    "tables beyond any memory": (
        lambda d: _edit_config(d, lambda c: c["encoders"]["audio"].update(n_mels=10**6)),
        "n_mels is 1000000, expected 1 to 4096",
    ),
    "cut weights": (lambda d: _truncate(d / "model.safetensors"), "damaged or cut short"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "weights of text": (lambda d: (d / "model.safetensors").write_text("hello " * 99), "damaged or cut short"),
    "missing tensor": (lambda d: _edit_weights(d, lambda s: s.pop("head.net.0.bias")), "lacks 1 tensor"),
    "extra tensor": (lambda d: _edit_weights(d, lambda s: s.update(extra=torch.zeros(1))), "has unknown 1 tensor"),
    "shape": (lambda d: _edit_weights(d, lambda s: s.update({"head.net.0.bias": torch.zeros(3)})), "net.0.bias is"),
    "nan": (lambda d: _edit_weights(d, lambda s: s["head.net.0.bias"].fill_(torch.nan)), "NaN"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint_is_named_in_one_line(tiny_directory: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(tiny_directory)
    with pytest.raises(InputError, match=message) as caught:
        load_reward(tiny_directory, device="cpu")
    assert str(tiny_directory) in str(caught.value) and "\n" not in str(caught.value)


def test_file_is_no_reward(tiny_directory: Path) -> None:
    with pytest.raises(InputError, match="is a file, not a reward"):
        load_reward(tiny_directory / "model.safetensors")


# heads alone


def test_head_file_round_trip(tmp_path: Path, tiny_judge: RewardModel) -> None:
    torch.save(tiny_judge.head.state_dict(), tmp_path / "head.pt")
    features = torch.randn(3, tiny_judge.head.input_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_head(tmp_path / "head.pt")(features), tiny_judge.head(features))


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "other", "code", "hollow"])
def test_bad_head_file_is_refused_and_never_executed(tmp_path: Path, tiny_judge: RewardModel, kind: str) -> None:
    path, touched = tmp_path / "head.pt", tmp_path / "touched"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "cut":
        torch.save(tiny_judge.head.state_dict(), path)
        _truncate(path)
    elif kind == "other":
        torch.save([1, 2], path)
    elif kind == "code":
        path.write_bytes(pickle.dumps(_Payload(touched)))
    elif kind == "hollow":  # one stored number that stands for 4 TB
        torch.save({**tiny_judge.head.state_dict(), "net.0.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(InputError, match=str(path)):
        load_head(path)
    assert not touched.exists()
