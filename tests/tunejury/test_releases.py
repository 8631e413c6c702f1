"""Released heads: the parts they stand on, one path through them, and everything that is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunejury import InputError, RewardModel, load_reward, save_audio
from tunejury.checkpoints import read_state_dict
from tunejury.encoders import build_encoder
from tunejury.encoders.clap import ClapAudioEncoder, ClapTextEncoder
from tunejury.encoders.mert import MertEncoder
from tunejury.releases import PARTS, RELEASES
from tunejury.scoring import score_files

Files = Mapping[str, Path]


def test_features_are_clap_mert_and_text_in_order(
    released_judge: RewardModel, clap_audio: ClapAudioEncoder, clap_text: ClapTextEncoder, mert: MertEncoder,
    music: Callable[..., Tensor],
) -> None:  # fmt: skip
    assert [(block.kind, block.encoders, block.dim) for block in released_judge.config.inputs] == [
        ("audio", ("clap-audio",), 16),
        ("audio", ("mert",), 24),
        ("text", ("clap-text",), 16),
    ]
    wav = music(0, 24_000, 1.0)
    with torch.no_grad():
        audio = released_judge.encode_audio(wav[None], 24_000)
        features = released_judge.features(audio, released_judge.encode_prompts(["a piano"]))
        torch.testing.assert_close(features[:, 16:40], mert(wav), rtol=0, atol=1e-6)
        torch.testing.assert_close(features[:, 40:], clap_text(["a piano"]), rtol=0, atol=1e-6)
        assert torch.equal(features[:, :16], audio["clap-audio"])
        blind = released_judge.features(audio, released_judge.encode_prompts([""]))
    assert blind[:, 40:].count_nonzero() == 0 and torch.equal(blind[:, :40], features[:, :40])


def test_file_array_batch_and_gradient_path_are_one(
    released_judge: RewardModel, music: Callable[..., Tensor], tmp_path: Path
) -> None:
    clips = torch.stack([torch.cat([music(seed, 44_100, 1.0), music(seed + 9, 44_100, 1.0)]) for seed in range(3)])
    prompts = ["a piano", "", "drums"]
    together = released_judge(clips.requires_grad_(), 44_100, prompts).detach()
    with torch.inference_mode():
        alone = torch.cat(
            [released_judge(clip[None], 44_100, [text]) for clip, text in zip(clips, prompts, strict=True)]
        )
    for i, clip in enumerate(clips.detach()):
        save_audio(tmp_path / f"{i}.wav", clip, 44_100)
    files = score_files(released_judge, [tmp_path / f"{i}.wav" for i in range(3)], prompts)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(together, torch.tensor(files), rtol=0, atol=1e-4)
    assert together.diff().abs().min() > 1e-3


def test_gradient_to_the_waveform_is_the_slope(
    released_files: Files, music: Callable[..., Tensor], noise: Callable[..., Tensor]
) -> None:
    judge = load_reward("tunejury", device="cpu", dtype=torch.float64, files=released_files)
    # with a noise floor: beside silence, a step that can be measured is no longer a small one for a logarithm
    wav = torch.cat([music(0, 44_100, 0.3), music(1, 44_100, 0.3)]) + 0.5 * noise(0, 2, 13_230)
    wav = wav[None].double().requires_grad_()
    judge(wav, 44_100, ["a piano"]).sum().backward()
    gradient, generator = wav.grad, torch.Generator().manual_seed(0)
    assert gradient is not None
    for _ in range(3):
        direction = torch.randn(wav.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            up, down = (judge(wav + step * direction, 44_100, ["a piano"]) for step in (1e-6, -1e-6))
        assert float((up - down) / 2e-6) == pytest.approx(float((gradient * direction).sum()), rel=1e-3)


def test_saved_release_needs_no_other_file(
    released_judge: RewardModel, music: Callable[..., Tensor], tmp_path: Path
) -> None:
    released_judge.save_pretrained(tmp_path / "saved")
    wav = music(0, 32_000, 1.0)[None]
    loaded = load_reward(tmp_path / "saved", device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded(wav, 32_000, ["a piano"]), released_judge(wav, 32_000, ["a piano"]))
    assert loaded.licenses() == released_judge.licenses() and loaded.protocol == released_judge.protocol


def test_licences_of_every_part_are_known(released_judge: RewardModel) -> None:
    assert released_judge.licenses() == {
        "tunejury": "CC BY-NC 4.0",
        "clap-audio": "Apache-2.0",
        "mert": "CC BY-NC 4.0",
        "clap-text": "Apache-2.0",
    }


def test_transformers_folder_of_clap_is_the_same_judge(
    released_judge: RewardModel, released_files: Files, music: Callable[..., Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    encoders = released_judge.encoders
    state = {**encoders["clap-audio"].state_dict(), **encoders["clap-text"].state_dict()}
    state = {name.removeprefix("model."): tensor.clone() for name, tensor in state.items()}
    save_file({**state, "logit_scale_a": torch.zeros(())}, tmp_path / "model.safetensors")
    towers = {
        "audio_config": encoders["clap-audio"].model.config.to_dict(),
        "text_config": encoders["clap-text"].model.config.to_dict(),
        "projection_dim": 16,
    }
    (tmp_path / "config.json").write_text(json.dumps(towers))
    judge = load_reward("tunejury", device="cpu", files={**released_files, "clap": tmp_path})
    wav = music(0, 48_000, 0.5)[None]
    with torch.no_grad():
        assert torch.equal(judge(wav, 48_000, ["a piano"]), released_judge(wav, 48_000, ["a piano"]))

    towers["audio_config"]["enable_fusion"] = True
    (tmp_path / "config.json").write_text(json.dumps(towers))
    with pytest.raises(InputError, match="fused CLAP model"):
        load_reward("tunejury", files={**released_files, "clap": tmp_path})


# heads with a description beside them


def test_ablation_head_reads_what_its_description_leaves(released_files: Files, tmp_path: Path) -> None:
    from tunejury.head import RewardHead

    torch.save({"state_dict": RewardHead(16, (8,)).state_dict()}, tmp_path / "A1.pt")
    (tmp_path / "A1.json").write_text('{"input_dim": 16, "exclude": ["mert", "text"]}')
    judge = load_reward(tmp_path / "A1.pt", device="cpu", files={"clap": released_files["clap"]})
    assert list(judge.encoders) == ["clap-audio"] and judge.config.head.widths == (8,)
    (tmp_path / "A1.json").write_text('{"input_dim": 16, "exclude": ["text"]}')
    with pytest.raises(InputError, match="reads 16 features, but clap-audio, mert give 40"):
        load_reward(tmp_path / "A1.pt", files=released_files)
    for wrong in ("[]", '{"exclude": "mert"}', '{"exclude": ["muq"]}', '{"exclude": ["clap_audio", "mert", "text"]}'):
        (tmp_path / "A1.json").write_text(wrong)
        with pytest.raises(InputError, match="A1.json has no list"):
            load_reward(tmp_path / "A1.pt", files=released_files)
    (tmp_path / "A1.json").unlink()
    with pytest.raises(InputError, match="expected A1.json beside it"):
        load_reward(tmp_path / "A1.pt", files=released_files)


# what is refused


def _edit(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = read_state_dict(path)
    edit(state)
    torch.save(state, path)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


QKV = "module.audio_branch.layers.0.blocks.0.attn.qkv.weight"
INDEX = "module.audio_branch.layers.0.blocks.0.attn.relative_position_index"
NORM = "module.audio_branch.norm.weight"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "other key": ("clap", lambda p: _edit(p, lambda s: s.update(other=torch.zeros(1))), "not a weight of CLAP"),
    "unknown audio key": (
        "clap",
        lambda p: _edit(p, lambda s: s.update({"module.audio_branch.x": torch.zeros(1)})),
        "has unknown 1 tensor",
    ),
    "missing key": ("clap", lambda p: _edit(p, lambda s: s.pop(QKV)), "lacks 3 tensor"),
    "missing size": ("clap", lambda p: _edit(p, lambda s: s.pop(NORM)), "it lacks audio_model.audio_encoder.norm"),
    "fused": (
        "clap",
        lambda p: _edit(p, lambda s: s.update({"module.audio_branch.patch_embed.mel_conv2d.bias": torch.zeros(1)})),
        "fused CLAP model",
    ),
    "nan": ("clap", lambda p: _edit(p, lambda s: s[QKV].fill_(torch.nan)), "NaN"),
    "table": ("clap", lambda p: _edit(p, lambda s: s[INDEX].fill_(399)), "is not the table that its config gives"),
    "cut": ("clap", lambda p: p.write_bytes(p.read_bytes()[:-900]), "damaged"),
    "code": ("clap", lambda p: p.write_bytes(pickle.dumps({"x": _Payload(p.with_name("touched"))})), "damaged"),
    "deepnorm": ("mert", lambda p: _config(p, deepnorm=True), "deepnorm is True, expected False"),
    "cqt": ("mert", lambda p: _config(p, feature_extractor_cqt=True), "feature_extractor_cqt is True"),
    "other mert": ("mert", lambda p: _config(p, num_hidden_layers=3), "lacks 16 tensor"),
    "no flag": ("mert", lambda p: (p / "preprocessor_config.json").write_text("{}"), "do_normalize"),
    "no preprocessor": ("mert", lambda p: (p / "preprocessor_config.json").unlink(), "does not exist"),
    "no weights": ("mert", lambda p: (p / "pytorch_model.bin").unlink(), "holds no weights"),
    "no vocabulary": ("roberta", lambda p: (p / "vocab.json").unlink(), "tokenizer.json does not exist"),
    "merges of no text": ("roberta", lambda p: (p / "merges.txt").write_bytes(b"\xff a\n"), "merges.txt is no"),
    "other vocabulary": (
        "roberta",
        lambda p: (p / "vocab.json").write_text(json.dumps({str(i): i for i in range(999)})),
        "999 tokens",
    ),
    "head of other width": ("head", lambda p: _other_head(p), "reads 99 features, but clap-audio, mert, clap-text"),
    "head of text": ("head", lambda p: p.write_text("hello"), "damaged or no state dict"),
    "no head": ("head", lambda p: p.unlink(), "does not exist"),
}  # fmt: skip


def _config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def _other_head(path: Path) -> None:
    from tunejury.head import RewardHead

    torch.save(RewardHead(99, (8,)).state_dict(), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_part_is_named_in_one_line(released_files: Files, tmp_path: Path, kind: str) -> None:
    part, damage, message = DAMAGE[kind]
    source, copy = released_files[part], tmp_path / released_files[part].name
    shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    damage(copy)
    with pytest.raises(InputError, match=message) as caught:
        load_reward("tunejury", device="cpu", files={**released_files, part: copy})
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_value_that_transformers_refuses_is_a_mistake_in_the_config() -> None:
    for config in ({"kind": "clap-text", "projection_hidden_act": 7}, {"kind": "mert", "layer_norm_eps": "x"}):
        with pytest.raises(InputError, match=f"kind '{config['kind']}' cannot be built") as caught:
            build_encoder(config)
        assert "\n" not in str(caught.value)


def test_unknown_part_and_files_without_a_release(released_files: Files, tiny_directory: Path) -> None:
    with pytest.raises(InputError, match="unknown part 'clop'"):
        load_reward("tunejury", files={"clop": tiny_directory})
    with pytest.raises(InputError, match="files are for the parts of a released head"):
        load_reward(tiny_directory, files=released_files)


def test_parts_are_found_in_the_hub_cache(released_files: Files, tmp_path: Path) -> None:
    """The hub client's own folder layout, offline, in a process of its own; a part that is not there is named."""
    sources = {"head": RELEASES["tunejury"].head, **{part: PARTS[part] for part in ("clap", "roberta", "mert")}}
    for part, source in sources.items():
        repository = tmp_path / f"models--{source.repository.replace('/', '--')}"
        revision = source.revision or "0" * 40
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        snapshot = repository / "snapshots" / revision
        given = released_files[part]
        if given.is_dir():
            shutil.copytree(given, snapshot)
        else:
            snapshot.mkdir(parents=True)
            shutil.copy(given, snapshot / source.files[0])
    program = (
        "import shutil, sys, tunejury\n"
        "assert list(tunejury.load_reward('tunejury', device='cpu').encoders) == ['clap-audio', 'mert', 'clap-text']\n"
        "shutil.rmtree(sys.argv[1])\n"
        "try:\n    tunejury.load_reward('tunejury', device='cpu')\n"
        "except tunejury.InputError as error:\n    sys.stdout.write(str(error))\n"
    )
    lost = tmp_path / "models--m-a-p--MERT-v1-330M"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program, str(lost)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "m-a-p/MERT-v1-330M" in done.stdout and "\n" not in done.stdout
