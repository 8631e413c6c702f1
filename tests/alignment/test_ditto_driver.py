"""The DITTO driver: trouble in one prompt stays in one prompt, and the summary says what there is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from alignment.ditto import DittoConfig
from alignment.ditto_driver import ditto
from alignment.ditto_results import describe_ditto, summarize_ditto
from alignment.errors import InputError
from alignment.interfaces import Candidate, Prompt
from alignment.runs import REPORT, RESULTS, RunDirectory

PROMPTS = [Prompt("a", "calm piano"), Prompt("b/<c>", "fast drums"), Prompt("d", "a b c")]
CONFIG = DittoConfig(num_optimization_steps=2, batch_size=2)


def loudness(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
    return (wav.square().flatten(1).mean(dim=1) + 1e-6).log()


def optimize(path: Path, backbone: Any, audio_io: Mapping[str, Any], reward: Any = loudness, **given: Any) -> Any:
    settings = {**asdict(CONFIG), "prompts": [[p.prompt_id, p.prompt] for p in PROMPTS]}
    with RunDirectory(path, "ditto", settings) as run:
        return ditto(backbone, reward, PROMPTS, CONFIG, run, **audio_io, **given)


@pytest.fixture(scope="module")
def backbone(make_pipeline: Callable[..., Any], wrap: Callable[..., Any]) -> Any:
    return wrap(make_pipeline())


def test_trouble_of_one_prompt_is_marked_and_the_run_goes_on(
    tmp_path: Path, backbone: Any, audio_io: Mapping[str, Any]
) -> None:
    calls: list[int] = []

    def reward(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        values = loudness(wav, sample_rate, prompts)
        if values.requires_grad and any("drums" in prompt for prompt in prompts):
            calls.append(1)
            if len(calls) == 2:
                row = prompts.index("fast drums")
                values.register_hook(lambda grad: grad.index_fill(0, grad.new_tensor([row]).long(), math.nan))
        return values

    summary = optimize(tmp_path, backbone, audio_io, reward, held_out=loudness)
    assert summary == json.loads((tmp_path / RESULTS).read_text())
    assert [(item["prompt_id"], item["error"]) for item in summary["failed"]] == [
        ("b/<c>", "step 1: the gradient is not finite")
    ]
    assert summary["num_prompts"] == summary["num_prompts_scored"] == summary["improved"] == 3
    marked = summary["prompts"][1]
    assert marked["problem"] and marked["best_step"] == 1 and len(marked["rewards"]) == 2
    assert [len(summary["prompts"][place]["rewards"]) for place in (0, 2)] == [3, 3]
    report = (tmp_path / REPORT).read_text()
    assert "b/&lt;c&gt;" in report and "the gradient is not finite" in report and report.count("<audio") == 6
    assert "failed: 1 of 3 prompts" in describe_ditto(summary)


def test_a_prompt_that_makes_no_sound_is_counted_and_left_out_of_the_means(
    tmp_path: Path, backbone: Any, audio_io: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    render = type(backbone).render

    def deaf(latents: Tensor, prompts: Any, **options: Any) -> Tensor:
        wav = render(backbone, latents, prompts, **options)
        silent = latents.new_tensor(["drums" in prompt for prompt in prompts.prompts]) > 0
        return wav.masked_fill(silent[:, None, None], math.nan)

    monkeypatch.setattr(backbone, "render", deaf)
    summary = optimize(tmp_path, backbone, audio_io)
    assert summary["num_prompts"] == 3 and summary["num_prompts_scored"] == 2 == summary["improved"]
    assert [item["prompt_id"] for item in summary["failed"]] == ["b/<c>"]
    entry = summary["prompts"][1]
    assert entry["baseline_path"] is entry["optimized_reward"] is None and "NaN or infinite" in entry["problem"]
    sound = [summary["prompts"][place]["optimized_reward"] for place in (0, 2)]
    assert summary["optimized_reward_mean"] == pytest.approx(sum(sound) / 2)
    assert (tmp_path / REPORT).read_text().count("<audio") == 4


def test_a_backbone_without_latents_leaves_nothing_behind(
    tmp_path: Path, toy_backbone: Any, audio_io: Mapping[str, Any]
) -> None:
    with pytest.raises(InputError, match="no initial latents"):
        optimize(tmp_path / "out", toy_backbone, audio_io)
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_summary_of_known_rewards() -> None:
    def pool(name: str, before: float, after: float, held: tuple[float, float]) -> list[Candidate]:
        return [
            Candidate(name, name, number, 7, reward, f"audio/{name}{number}.wav", side={"held_out_reward": side})
            for number, (reward, side) in enumerate(zip((before, after), held, strict=True))
        ]

    paths = {
        "a": {"rewards": [0.0, 1.0, 3.0], "held_out_rewards": [1.0, 2.0, 0.0], "best_step": 1},
        "b": {"rewards": [1.0, 3.0], "held_out_rewards": [0.0, 2.0], "best_step": 1},
    }
    more = {"problem": None, "stopped": None, "latent_shift": 0.1, "denoiser_evaluations": 9, "peak_memory_bytes": 5}
    pools = [pool("a", 0.0, 1.0, (1.0, 0.5)), pool("b", 2.0, 5.0, (0.0, 2.0))]
    trajectories = {name: {**path, **more} for name, path in paths.items()}
    summary = summarize_ditto(pools, {"recipe": "ditto"}, {}, {"a": 0.2, "b": 0.4}, trajectories=trajectories)
    assert (summary["baseline_reward_mean"], summary["optimized_reward_mean"]) == (1.0, 3.0)
    assert summary["gain"]["mean"] == 2.0 and summary["improved"] == 2
    assert summary["held_out_gain"]["mean"] == 0.75 and summary["held_out_improved"] == 1
    assert summary["drift"]["mean"] == pytest.approx(0.3) and summary["peak_memory_bytes"] == 5
    # a clip that has ended stays where it was
    assert summary["gain_by_step"]["mean"] == [0.0, 1.5, 2.5]
    assert summary["held_out_gain_by_step"]["mean"] == [0.0, 1.5, 0.5]
