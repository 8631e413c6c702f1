"""The loop on tiny models of every family: what it writes, that it knows when to stop, that it finds what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignment.backbones.musicgen_training import TrainableMusicgenBackbone
from alignment.diversity import log_mel_embedding
from alignment.errors import InputError
from alignment.expert_iteration import ExpertIterationConfig, expert_iteration
from alignment.expert_results import describe
from alignment.experts import SelectionConfig
from alignment.interfaces import LearningDefaults, Prompt
from alignment.lessons import FineTuningConfig
from alignment.lora import ADAPTER_WEIGHTS, LoraConfig, base_digest, moved, read_adapter
from alignment.overoptimization import HELD_OUT, BudgetConfig
from alignment.runs import RECORDS, RESULTS, RunDirectory

PROMPTS = [Prompt("a", "calm piano"), Prompt("b/1", "fast drums a b c")]
HELD = [Prompt("a", "piano d"), Prompt("c", "drums <b>e</b> f")]
FAMILIES = ["stable-audio-3", "stable-audio", "ace-step", "longcat", "audioldm2", "musicgen"]
WIDE = BudgetConfig(1e6, 1e6, 0.0, 1e6, 1e6)
CONFIG = ExpertIterationConfig(
    num_rounds=1, num_candidates=4, num_evaluation_seeds=2, learning_rates=(1e-3,), batch_size=3,
    num_inference_steps=2, selection=SelectionConfig(keep_fraction=0.5), lora=LoraConfig(rank=2, alpha=4),
    training=FineTuningConfig(num_steps=3, train_batch_size=2, warmup_steps=0, checkpoint_every=2), budgets=WIDE,
)  # fmt: skip
Make = Callable[..., Any]


@pytest.fixture
def make(make_pipeline: Make, wrap: Make, make_musicgen: Make) -> Make:
    def of(family: str = "stable-audio-3") -> Any:
        if family == "musicgen":
            settings = {"duration": 0.3, "guidance_scale": 2.0}
            return TrainableMusicgenBackbone(*make_musicgen(), name="tiny", license="CC0-1.0", defaults=settings)
        return wrap(make_pipeline(family))

    return of


def level(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
    """A judge that likes it loud."""
    return wav.abs().mean(dim=(1, 2)) * 10


def quiet(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
    return -level(wav, sample_rate, prompts)


def gap(first: Tensor, second: Tensor) -> float:
    return float((first.mean(0) - second.mean(0)).norm())


@pytest.fixture
def iterate(make: Make, audio_io: dict[str, Any], tmp_path: Path) -> Make:
    def run(
        config: ExpertIterationConfig = CONFIG, backbone: Any = None, name: str = "out", **options: Any
    ) -> dict[str, Any]:
        given: dict[str, Any] = {"reward": level, "prompts": PROMPTS, "held_out": HELD, **options}
        judge, prompts, held_out = (given.pop(key) for key in ("reward", "prompts", "held_out"))
        if "musicgen" in str(type(backbone)).lower():
            config = replace(config, num_inference_steps=None)
        with RunDirectory(tmp_path / name, "expert_iteration", {"x": 1}) as directory:
            return expert_iteration(
                make() if backbone is None else backbone, judge, prompts, held_out, config, directory,
                embed=log_mel_embedding, distance=gap, **audio_io, **given,
            )  # fmt: skip

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_of_every_family(iterate: Make, make: Make, tmp_path: Path, family: str) -> None:
    backbone = make(family)
    digest = base_digest(backbone)
    # three small steps leave every draw of a token where it was
    config = replace(CONFIG, learning_rates=(3e-2,)) if family == "musicgen" else CONFIG
    summary = iterate(config, backbone, side_rewards={HELD_OUT: quiet})
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == summary
    (row,) = summary["rounds"]
    for key in (
        "round", "reward_mean", "reward_delta", "improved", "num_prompts", "held_out_mean", "held_out_delta",
        "diversity", "drift", "learning_rate", "adapter",
    ):  # fmt: skip
        assert row[key] is not None, key
    assert summary["failed"] == [] and row["num_experts"] == 4 and row["num_prompts"] == 2
    assert row["reward_mean"] - summary["base"]["reward_mean"] == pytest.approx(row["reward_delta"])
    assert row["held_out_delta"] == pytest.approx(-row["reward_delta"]) and row["drift"] > 0
    assert row["tensors_moved"] > 0.6 * row["tensors"] and row["loss_with_adapter"] != row["loss_without_adapter"]
    assert base_digest(backbone) == digest
    # loadable by peft, and it is what was evaluated
    other = make(family)
    other.trainable_module = peft.PeftModel.from_pretrained(
        other.trainable_module, str(tmp_path / "out" / row["adapter"])
    )
    read_adapter(backbone, tmp_path / "out" / row["adapter"])
    settings = {} if family == "musicgen" else {"num_inference_steps": 2}
    clips = [each.generate(["piano d"], [0], **settings) for each in (backbone, other)]
    assert torch.allclose(*clips, atol=1e-4)
    pair = summary["prompts"][0]
    if summary["selected_round"] == 1:
        assert float(level(clips[0], 0, [""])) == pytest.approx(pair["selected"]["reward"], abs=1e-4)
    records = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    assert len(records) == 8 and sum(record["expert"] for record in records) == 4
    for prompt_id in {record["prompt_id"] for record in records if record["expert"]}:
        assert max((r for r in records if r["prompt_id"] == prompt_id), key=lambda record: record["reward"])["expert"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "drums &lt;b&gt;e" in page and "<b>e" not in page and "<audio" in page and "Reward against drift" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_what_is_not_told_is_the_family_s_own(iterate: Make, make: Make, tmp_path: Path) -> None:
    open_ones = dict.fromkeys(("num_candidates", "num_evaluation_seeds", "learning_rates", "batch_size"))
    untold = replace(CONFIG, **open_ones, training=replace(CONFIG.training, num_steps=None))  # type: ignore[arg-type]
    told = replace(untold, learning_rates=(2e-3,), training=replace(CONFIG.training, preference_beta=9.0, num_steps=2))
    adapters = []
    for name, config, own in (
        ("own", untold, (9.0, 2e-3, 2)),
        ("same", told, (1.0, 1e-3, 5)),
        ("other", untold, (1.0, 2e-3, 2)),
    ):
        backbone = make()
        backbone.learning = LearningDefaults(3, *own, num_evaluation_seeds=1, batch_size=2)
        summary = iterate(config, backbone, name=name)
        rate = summary["rounds"][0]["learning_rate"]
        assert rate == 2e-3 and summary["learning"] == {
            "num_prompts": len(PROMPTS),
            "num_candidates": 3,
            "num_evaluation_seeds": 1,
            "batch_size": 2,
            "num_steps": 2,
            "objective": "preference",
            "preference_beta": 1.0 if name == "other" else 9.0,
            "learning_rates": [rate],
        }
        assert len((tmp_path / name / "candidates.jsonl").read_text().splitlines()) == 3 * len(PROMPTS)
        adapters.append(load_file(tmp_path / name / summary["rounds"][0]["adapter"] / ADAPTER_WEIGHTS))
    (tmp_path / "own" / RESULTS).unlink()
    with pytest.raises(InputError, match=r"learning: preference_beta was 9\.0, now 1\.0"):
        iterate(untold, backbone, name="own")
    own_values, same, other = adapters
    assert moved(own_values, same) == 0 < moved(own_values, other)
    with pytest.raises(InputError, match="keeps none"):
        iterate(replace(untold, selection=SelectionConfig(keep_fraction=0.01)), name="few")


def test_what_a_backbone_cannot_learn_is_told_before_anything_is_drawn(
    iterate: Make, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="num_candidates is 1; expected at least 2"):
        iterate(replace(CONFIG, num_candidates=1))
    of_tokens = replace(CONFIG, training=replace(CONFIG.training, objective="gradient"))
    with pytest.raises(InputError, match="draws no tokens for objective gradient to judge"):
        iterate(of_tokens, name="tokens")
    # one is enough to be learned by itself, or for the gradient
    alone = SelectionConfig(keep_per_prompt=1)
    single = replace(CONFIG, num_candidates=1, selection=alone)
    likely = replace(single, training=replace(CONFIG.training, objective="likelihood"))
    assert iterate(likely, name="alone")["learning"]["num_candidates"] == 1
    summary = iterate(single, make("musicgen"), name="gradient")
    assert summary["learning"]["objective"] == "gradient" and summary["learning"]["kl_weight"] > 0
    records = [json.loads(line) for line in (tmp_path / "gradient" / RECORDS).read_text().splitlines()]
    assert len(records) == 2 and not any(record["counterexample"] for record in records)


def test_rounds_go_on_from_the_best_and_the_best_of_all_is_returned(iterate: Make, make: Make, tmp_path: Path) -> None:
    config = replace(CONFIG, num_rounds=2, learning_rates=(1e-3, 2e-2))
    logged: list[tuple[dict[str, float], int]] = []
    backbone = make()
    summary = iterate(config, backbone, log=lambda values, step: logged.append((dict(values), step)))
    assert [row["round"] for row in summary["rounds"]] == [1, 2] and len(summary["trials"]) == 4
    for number, row in enumerate(summary["rounds"], 1):
        own = [trial["reward_mean"] for trial in summary["trials"] if trial["round"] == number]
        assert row["reward_mean"] == max(own)
    best = max([summary["base"], *summary["rounds"]], key=lambda row: row["reward_mean"])
    assert summary["selected_round"] == best.get("round", 0) and summary["stopped_because"] == "all 2 rounds are done"
    # the candidates of the second round are drawn by the adapter of the first; no seed is drawn or evaluated twice
    records = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    assert [record["seed"] for record in records] == list(range(len(records) + 4))[4:]
    assert [step for values, step in logged if "train/loss" in values] == list(range(1, 13))
    assert sum("round/reward_mean" in values for values, _ in logged) == 4
    assert "selected: round" in describe(summary) and summary["seconds"]["train"] > 0


def test_at_an_absurd_learning_rate_the_guard_stops_and_returns_an_earlier_round(
    iterate: Make, make: Make, tmp_path: Path
) -> None:
    """The first round is fine; the second is spoiled beyond any measure, and is not returned."""
    gentle = iterate(replace(CONFIG, num_rounds=1), name="gentle")
    assert gentle["rounds"][0]["broken"] == []
    backbone = make()
    summary = iterate(replace(CONFIG, num_rounds=3, learning_rates=(1e6,), budgets=BudgetConfig()), backbone)
    assert summary["selected_round"] == 0 and summary["selected_adapter"] is None
    assert summary["stopped_because"].startswith("round 1 went beyond what is allowed: ")
    assert summary["rounds"][-1]["broken"] and len(summary["rounds"]) == 1
    settings = {"num_inference_steps": 2}
    assert torch.equal(backbone.generate(["piano"], [3], **settings), make().generate(["piano"], [3], **settings))


def test_a_later_round_that_breaks_a_budget_leaves_the_earlier_one(iterate: Make) -> None:
    """The judge likes it better and better; the held-out one has had enough after the first round."""
    heard: list[int] = []

    def better(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        heard.append(len(wav))
        return level(wav, sample_rate, prompts) + len(heard)

    held_out: list[int] = []

    def enough(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        held_out.append(len(wav))
        return torch.full((len(wav),), 0.0 if sum(held_out) <= 8 else -1.0)  # base and first round: 4 clips each

    budgets = replace(WIDE, max_held_out_drop=0.0)
    options = {"reward": better, "side_rewards": {HELD_OUT: enough}}
    summary = iterate(replace(CONFIG, num_rounds=3, budgets=budgets), **options)
    assert summary["selected_round"] == 1 and [row["round"] for row in summary["rounds"]] == [1, 2]
    assert summary["stopped_because"] == "round 2 went beyond what is allowed: held out reward -1.000 (budget -0.000)"
    assert summary["selected_adapter"] == summary["rounds"][0]["adapter"]


def test_a_loss_that_is_not_finite_ends_the_run_with_what_it_has(iterate: Make, make: Make, tmp_path: Path) -> None:
    backbone = make()
    loss, calls = backbone.clip_losses, []

    def spoiled(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        value: Tensor = loss(*arguments, **options)
        return value * (torch.nan if torch.is_grad_enabled() else 1.0)

    backbone.clip_losses = spoiled
    summary = iterate(replace(CONFIG, num_rounds=2), backbone)
    assert "not finite in step 1 of 3 at learning rate 0.001" in summary["stopped_because"]
    assert summary["selected_round"] == 0 and summary["rounds"][0]["adapter"] is None and len(calls) == 2
    assert "not finite" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("phase", ["base", "draw", "train", "evaluate"])
def test_interrupted_in_any_phase_it_ends_as_if_it_had_not_been(
    iterate: Make, make: Make, tmp_path: Path, phase: str
) -> None:
    whole = iterate(name="whole")
    backbone, drawn, wav_made, trained = make(), [], [], []
    targets, wav, loss = backbone.generate_targets, backbone.generate, backbone.clip_losses

    def draw(*arguments: Any, **options: Any) -> Tensor:
        drawn.append(1)
        if phase == "draw" and len(drawn) == 2:
            raise KeyboardInterrupt
        value: Tensor = targets(*arguments, **options)
        return value

    def generate(*arguments: Any, **options: Any) -> Tensor:
        wav_made.append(1)
        if len(wav_made) == {"base": 2, "evaluate": 4}.get(phase):
            raise KeyboardInterrupt
        value: Tensor = wav(*arguments, **options)
        return value

    def learn(*arguments: Any, **options: Any) -> Tensor:
        trained.append(1)
        if phase == "train" and len(trained) == 3:
            raise KeyboardInterrupt
        value: Tensor = loss(*arguments, **options)
        return value

    backbone.generate_targets, backbone.generate, backbone.clip_losses = draw, generate, learn
    with pytest.raises(KeyboardInterrupt):
        iterate(backbone=backbone)
    again = iterate()
    assert not (tmp_path / "out" / "training" / "round-1-drawn").exists()
    records = [(tmp_path / name / "candidates.jsonl").read_text() for name in ("out", "whole")]
    assert records[0] == records[1]
    first, second = again["rounds"][0], whole["rounds"][0]
    assert first["reward_mean"] == pytest.approx(second["reward_mean"], abs=1e-5)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    assert {path.name for path in (tmp_path / "out" / "audio").iterdir()} == {
        path.name for path in (tmp_path / "whole" / "audio").iterdir()
    }


@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        (replace(CONFIG, selection=SelectionConfig(keep_fraction=0.1)), {}, "too few candidates"),
        (CONFIG, {"held_out": PROMPTS[:1]}, "1 held-out prompts are trained on too, first 'calm piano'"),
        (CONFIG, {"held_out": []}, "one held-out prompt"),
        (CONFIG, {"reward": lambda wav, rate, prompts: torch.full((len(wav),), torch.nan)}, "none of the base's clips"),
    ],
)
def test_what_cannot_be_done_is_one_line(iterate: Make, config: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        iterate(config, **options)


def test_a_backbone_that_cannot_learn_is_refused(iterate: Make, toy_backbone: Any) -> None:
    with pytest.raises(InputError, match="toy cannot carry an adapter"):
        iterate(backbone=toy_backbone)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rates": ()}, "learning_rates"),
        ({"learning_rates": (1e-3, 1e-3)}, "different"),
        ({"num_rounds": 0}, "0"),
    ],
)
def test_impossible_settings_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        replace(CONFIG, **options)
