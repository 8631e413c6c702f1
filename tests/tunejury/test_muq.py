"""MuQ-MuLan, small, with weights filled without a random generator: what it hears, how it loads, what is refused.

Golden numbers were printed by this code; `benchmarks/encoder_parity.py` holds the same code against the `muq` package
at equal weights.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunejury import InputError, RewardModel, load_reward
from tunejury.checkpoints import read_safetensors
from tunejury.encoders.muq import WINDOW, MuqAudioConfig, MuqAudioEncoder, MuqTextConfig, MuqTextEncoder
from tunejury.parts import read_muq_audio, read_muq_text
from tunejury.protocol import PROTOCOLS, listen, window_spans

from .conftest import fill
from .muq_files import WORDS, write_muq
from .test_released_encoders import wave

RATE = 24_000
HEARING = PROTOCOLS["release"].hearing("muq-audio")
TOWER: dict[str, Any] = {"tower_dim": 16, "tower_depth": 2, "tower_heads": 2, "tower_head_dim": 4}
TINY_AUDIO = MuqAudioConfig(
    dim=12, conv_dim=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    conv_depthwise_kernel_size=5, **TOWER,
)  # fmt: skip
TINY_TEXT = MuqTextConfig(
    dim=12, vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=20, **TOWER,
)  # fmt: skip
PROMPTS = ["a calm piano", "drums", "calm piano drums, a drum"]
REAL_HEAD = Path(__file__).parents[3] / "shared" / "data" / "heads" / "tunejury_muq_leave_MA.pt"


@pytest.fixture(scope="module")
def audio() -> MuqAudioEncoder:
    return fill(MuqAudioEncoder(TINY_AUDIO))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def files(audio: MuqAudioEncoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts of the small `tunejury-muq`, as they are published."""
    from tunejury.head import RewardHead

    folder = tmp_path_factory.mktemp("muq")
    head = fill(RewardHead(24, (16, 8)))
    head.net[-1].weight.data.mul_(10.0)  # type: ignore[index]
    renamed = {name.replace("net.", "score."): tensor for name, tensor in head.state_dict().items()}
    torch.save(renamed, folder / "tunejury_muq_leave_MA.pt")
    parts = write_muq(folder, audio, fill(MuqTextEncoder(TINY_TEXT)))
    return {"head": folder / "tunejury_muq_leave_MA.pt", **parts}


@pytest.fixture(scope="module")
def text(files: dict[str, Path]) -> MuqTextEncoder:
    config, weights, _ = read_muq_text(files["muq"], files["xlm-roberta"])
    encoder = MuqTextEncoder(MuqTextConfig(**config)).eval()
    encoder.load_state_dict(weights)
    return encoder


@pytest.fixture(scope="module")
def judge(files: dict[str, Path]) -> RewardModel:
    return load_reward("tunejury-muq", device="cpu", files=files)


# what is heard


def test_front_end_is_the_usual_log_mel(audio: MuqAudioEncoder, noise: Callable[..., Tensor]) -> None:
    """By an implementation of its own, in numpy."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    wav = wave(RATE, 1.0) + noise(0, 1, RATE)
    filters = mel_filter_bank(1025, 128, 0.0, 12_000.0, RATE, norm=None, mel_scale="htk")
    expected = spectrogram(
        wav[0].double().numpy(), window_function(2048, "hann"), 2048, 240, power=2.0, mel_filters=filters,
        mel_floor=1e-10, log_mel="dB", min_value=1e-10,
    )[:, :-1]  # fmt: skip
    expected = (torch.as_tensor(expected).float() - TINY_AUDIO.mel_mean) / TINY_AUDIO.mel_std
    assert expected.shape == (128, 100)
    torch.testing.assert_close(audio.front_end(wav)[0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("seconds", "spans"),
    [
        (0.5, [(0.0, 1.0)]),  # twice
        (4.0, [(0.0, 8.0)]),
        (7.0, [(0.0, 10.0)]),  # filled up
        (10.0, [(0.0, 10.0)]),
        (23.0, [(0.0, 10.0), (10.0, 10.0), (20.0, 10.0)]),
    ],
)
def test_last_window_goes_on_from_the_start(seconds: float, spans: list[tuple[float, float]]) -> None:
    found = window_spans(round(seconds * RATE), HEARING, RATE)
    assert [(start / RATE, length / RATE) for start, length in found] == spans


def test_long_clip_is_the_mean_of_its_wrapped_windows(audio: MuqAudioEncoder, noise: Callable[..., Tensor]) -> None:
    wav = wave(RATE, 12.0) + noise(1, 1, 12 * RATE)
    pieces = [wav[:, :WINDOW], torch.cat([wav[:, WINDOW:], wav[:, : 8 * RATE]], dim=1)]
    with torch.no_grad():
        expected = torch.stack([audio(piece) for piece in pieces]).mean(0)
        torch.testing.assert_close(listen(audio, wav, HEARING), expected, rtol=0, atol=1e-6)
    assert (audio(pieces[0]) - audio(pieces[1])).abs().max() > 1e-3


def test_golden_numbers(audio: MuqAudioEncoder, text: MuqTextEncoder) -> None:
    with torch.no_grad():
        found = [*audio(wave(RATE, 3.0)), *listen(audio, wave(RATE, 37.0), HEARING), *text(PROMPTS[:1])]
    for embedding, golden in zip(found, (AUDIO_3S, AUDIO_37S, TEXT), strict=True):
        assert embedding[:4].tolist() == pytest.approx(golden, abs=1e-4)


def test_batch_equals_singles(audio: MuqAudioEncoder, text: MuqTextEncoder, noise: Callable[..., Tensor]) -> None:
    clips = torch.cat([wave(RATE, 1.0), noise(0, 2, RATE)])
    with torch.no_grad():
        torch.testing.assert_close(audio(clips), torch.cat([audio(clip[None]) for clip in clips]), rtol=0, atol=1e-5)
        together, alone = text(PROMPTS), torch.cat([text([prompt]) for prompt in PROMPTS])
    assert torch.equal(together, alone) and (together[0] - together[1]).norm() > 1e-3
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))


def test_gradient_after_a_first_use_in_inference_mode(audio: MuqAudioEncoder) -> None:
    with torch.inference_mode():
        audio(wave(RATE, 0.7))
    wav = wave(RATE, 0.7).requires_grad_()
    audio(wav)[0, 0].backward()
    assert wav.grad is not None and wav.grad.isfinite().all() and wav.grad.abs().sum() > 0


@pytest.mark.parametrize("samples", [1, 1_024, 1_025])
def test_shortest_clips_are_embedded(audio: MuqAudioEncoder, samples: int) -> None:
    assert audio(torch.zeros(1, samples)).isfinite().all()


@pytest.mark.parametrize("shape", [(1, WINDOW + 1), (1, 0), (WINDOW,)])
def test_hears_up_to_its_window(audio: MuqAudioEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="240000"):
        audio(torch.zeros(shape))


def test_prompts_are_cut_at_the_towers_limit_and_empty_ones_are_zeros(text: MuqTextEncoder) -> None:
    assert text.tokenize("calm " * 50).shape == (18,) and text.tokenize("a").tolist() == [0, 4, 2]
    embeddings = text(["", "calm " * 50, " \n"])
    assert embeddings[0].count_nonzero() == embeddings[2].count_nonzero() == 0 and embeddings[1].isfinite().all()


# the released head


def test_features_are_audio_and_text_in_order(
    judge: RewardModel, audio: MuqAudioEncoder, text: MuqTextEncoder, music: Callable[..., Tensor]
) -> None:
    assert [(b.encoders, b.dim) for b in judge.config.inputs] == [(("muq-audio",), 12), (("muq-text",), 12)]
    wav = torch.cat([music(0, 44_100, 1.0), music(1, 44_100, 1.0)])[None]
    with torch.no_grad():
        heard = judge.encode_audio(wav, 44_100)
        features = judge.features(heard, judge.encode_prompts(["drums"]))
        assert torch.equal(features[:, :12], heard["muq-audio"])
        torch.testing.assert_close(features[:, 12:], text(["drums"]), rtol=0, atol=1e-6)
        torch.testing.assert_close(judge(wav, 44_100, ["drums"]), judge.head(features), rtol=0, atol=1e-6)
    assert judge.licenses() == dict.fromkeys(("tunejury-muq", "muq-audio", "muq-text"), "CC BY-NC 4.0")
    assert judge.protocol["encoders"]["muq-audio"]["windows"] == "wrapped"


def test_saved_judge_needs_no_other_file(judge: RewardModel, music: Callable[..., Tensor], tmp_path: Path) -> None:
    judge.save_pretrained(tmp_path / "saved")
    loaded, wav = load_reward(tmp_path / "saved", device="cpu"), music(0, 16_000, 1.0)[None]
    with torch.no_grad():
        assert torch.equal(loaded(wav, 16_000, ["a piano"]), judge(wav, 16_000, ["a piano"]))


def test_training_protocol_says_nothing_of_it(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="'training' does not say what an encoder of kind 'muq-audio' hears"):
        load_reward("tunejury-muq", files=files, protocol="training")


def test_inner_layer_is_read_before_the_last_normalisation(
    audio: MuqAudioEncoder, files: dict[str, Path], tmp_path: Path
) -> None:
    folder = _copy(files["muq"], tmp_path)
    _edit(folder / "config.json", lambda c: c["audio_model"].update(use_layer_idx=1))
    config, weights, _ = read_muq_audio(folder, files["muq-base"])
    inner = MuqAudioEncoder(MuqAudioConfig(**config)).eval()
    inner.load_state_dict(weights)
    assert (inner.config.num_hidden_layers, inner.config.final_norm) == (1, False)
    states: list[Tensor] = []
    hook = audio.conformer.layers[1].register_forward_pre_hook(lambda module, given: states.append(given[0]))
    audio(wave(RATE, 0.5))
    hook.remove()
    expected = audio.to_latents(audio.transformer(audio.proj(states[0])).mean(1))
    torch.testing.assert_close(inner(wave(RATE, 0.5)), torch.nn.functional.normalize(expected), rtol=0, atol=1e-5)


def test_the_real_head_runs_on_encoders_of_its_size(music: Callable[..., Tensor], tmp_path: Path) -> None:
    if not REAL_HEAD.exists():
        pytest.skip("no ../shared/data/heads here")
    encoders = [fill(MuqAudioEncoder(dataclasses.replace(TINY_AUDIO, dim=512)))]
    parts = write_muq(tmp_path / "muq", *encoders, fill(MuqTextEncoder(dataclasses.replace(TINY_TEXT, dim=512))))
    judge = load_reward("tunejury-muq", device="cpu", files={"head": REAL_HEAD, **parts})
    assert judge.config.head.widths == (512, 256, 128, 64) and judge.config.input_dim == 1024
    wav = torch.stack([music(0, 24_000, 1.0), music(1, 24_000, 1.0)]).requires_grad_()
    rewards = judge(wav, 24_000, ["a piano", ""])
    rewards.sum().backward()
    assert rewards.isfinite().all() and wav.grad is not None and wav.grad.abs().sum() > 0
    # found by its own name too, though what lies beside it does not say what it reads
    shutil.copy(REAL_HEAD, tmp_path / REAL_HEAD.name)
    (tmp_path / "tunejury_muq_leave_MA.json").write_text('{"input_dim": 1024}')
    again = load_reward(tmp_path / REAL_HEAD.name, device="cpu", files=parts)
    with torch.no_grad():
        assert torch.equal(again(wav, 24_000, ["a piano", ""]), rewards)


# what is refused


def _copy(source: Path, folder: Path) -> Path:
    copy = folder / source.name
    shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    return copy


def _edit(path: Path, edit: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def _edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.clone() for name, tensor in read_safetensors(folder / "model.safetensors").items()}
    edit(state)
    save_file(state, folder / "model.safetensors")


LAYER = "mulan.audio.model.model.conformer.layers.0.ffn1.output_dense.bias"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "other key": ("muq", lambda p: _edit_weights(p, lambda s: s.update(x=torch.zeros(1))), "x is not a weight of MuQ"),
    "missing key": ("muq", lambda p: _edit_weights(p, lambda s: s.pop(LAYER)), "lacks 1 tensor"),
    "unknown key": (
        "muq",
        lambda p: _edit_weights(p, lambda s: s.update({"mulan.audio.model.x": torch.zeros(1)})),
        "has unknown 1 tensor",
    ),
    "other rate": ("muq", lambda p: _edit(p / "config.json", lambda c: c["mulan"].update(sr=16_000)), "sr is 16000"),
    "other text model": (
        "muq",
        lambda p: _edit(p / "config.json", lambda c: c["text_model"].update(name="Qwen/Qwen2")),
        "expected xlm-roberta",
    ),
    "no tower": ("muq", lambda p: _edit(p / "config.json", lambda c: c.pop("audio_transformer")), "is missing"),
    "layer": ("muq", lambda p: _edit(p / "config.json", lambda c: c["audio_model"].update(use_layer_idx=7)), "is 7 of"),
    "no weights": ("muq", lambda p: (p / "model.safetensors").unlink(), "holds no weights"),
    "hop": ("muq-base", lambda p: _edit(p, lambda c: c.update(hop_length=160)), "hop_length is 160, expected 240"),
    "label rate": ("muq-base", lambda p: _edit(p, lambda c: c.update(label_rate=[1])), "label_rate is"),
    "no statistics": ("muq-base", lambda p: _edit(p, lambda c: c["stat"].clear()), "melspec_2048_mean is None"),
    "depth": ("muq-base", lambda p: _edit(p, lambda c: c.update(encoder_depth=3)), "lacks"),
    "no base": ("muq-base", lambda p: p.unlink(), "does not exist"),
    "no tokeniser": ("xlm-roberta", lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
    "other tokeniser": ("xlm-roberta", lambda p: (p / "tokenizer.json").write_text("{}"), "no tokenizer.json"),
    "other size": ("xlm-roberta", lambda p: _edit(p / "config.json", lambda c: c.update(vocab_size=9)), "9 embeddings"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_part_is_named_in_one_line(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    part, damage, message = DAMAGE[kind]
    copy = _copy(files[part], tmp_path)
    damage(copy)
    with pytest.raises(InputError, match=message) as caught:
        load_reward("tunejury-muq", device="cpu", files={**files, part: copy})
    assert "\n" not in str(caught.value)


AUDIO_3S = [0.198840, -0.506729, 0.008062, 0.482181]
AUDIO_37S = [0.169405, -0.517995, 0.036561, 0.465585]
TEXT = [-0.372798, 0.150646, 0.144965, -0.293901]
