"""Learning: the same gradient however a batch is cut, the same adapter after a crash, and a stop where it diverges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.errors import InputError
from alignment.finetuning import fine_tune
from alignment.lessons import DivergedError, FineTuningConfig, Lesson
from alignment.lora import LoraConfig, adapter_parameters, adapter_state, attach_adapter, moved
from alignment.processes import ALONE

PROMPTS = ["calm piano", "fast drums a b c", "calm piano", "drums", "piano a", "b c", "fast"]
CONFIG = FineTuningConfig(
    preference_beta=1e-4, num_steps=6, train_batch_size=8, warmup_steps=2, checkpoint_every=2, mixed_precision="no"
)
Make = Callable[..., Any]


@pytest.fixture
def adapted(make_pipeline: Make, wrap: Make) -> Callable[[], Any]:
    def make() -> Any:
        backbone = wrap(make_pipeline())
        attach_adapter(backbone, LoraConfig(rank=4, alpha=8), seed=0)
        return backbone

    return make


def drawn(backbone: Any, seed: int) -> torch.Tensor:
    """Clips to learn, of unit variance: random weights make large ones, whose losses are in the hundreds."""
    targets: torch.Tensor = backbone.generate_targets(PROMPTS, range(seed, seed + len(PROMPTS)))
    return targets / targets.std()


@pytest.fixture(params=["experts alone", "preferred"])
def lesson(adapted: Callable[[], Any], request: pytest.FixtureRequest) -> Lesson:
    experts, others = drawn(adapted(), 0), drawn(adapted(), 50)
    return Lesson(experts, PROMPTS, 0.512, others if request.param == "preferred" else None)


def learned(backbone: Any, lesson: Lesson, config: FineTuningConfig, checkpoint: Path, **options: Any) -> Any:
    rate = options.pop("rate", 1e-2 if lesson.counterexamples is None else 1e-3)  # losses of random weights are large
    losses = fine_tune(backbone, lesson, rate, config, 5, checkpoint, ALONE, **options)
    return losses, adapter_state(backbone)


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float = 2e-5) -> None:
    for name, each in first.items():
        assert torch.allclose(each, second[name], atol=atol), name


def roughly(lesson: Lesson) -> float:
    """How far adapters may lie apart: Adam makes whole steps of what is left of a preference's gradient by rounding."""
    return 2e-5 if lesson.counterexamples is None else 1e-3


def test_eight_at_once_is_two_times_four(adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path) -> None:
    start = adapter_state(adapted())
    losses, whole = learned(adapted(), lesson, CONFIG, tmp_path / "whole")
    for parts in (2, 8):
        again, cut = learned(
            adapted(), lesson, replace(CONFIG, gradient_accumulation_steps=parts), tmp_path / f"{parts}"
        )
        assert again == pytest.approx(losses, rel=1e-4)
        close(cut, whole, roughly(lesson))
    gradients = []
    for parts in (1, 2, 8):
        backbone, config = adapted(), replace(CONFIG, num_steps=1, max_grad_norm=1e9, gradient_accumulation_steps=parts)
        learned(backbone, lesson, config, tmp_path / f"step-{parts}")
        gradients.append({name: each.grad for name, each in adapter_parameters(backbone).items()})
    for other in gradients[1:]:
        for name, each in gradients[0].items():
            assert torch.allclose(each, other[name], rtol=1e-3, atol=1e-3 * float(each.abs().max())), name
    assert moved(start, whole) == len(whole)
    assert losses[-1] != losses[0] and len(losses) == 6


def test_the_gradient_is_that_of_the_mean_loss(adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path) -> None:
    """The clips' own losses, as the backbone was asked for them in one step, one by one."""
    backbone = adapted()
    asked: list[tuple[Any, ...]] = []

    class Listening(Cramped):
        def clip_losses(self, *arguments: Any, **options: Any) -> torch.Tensor:
            generators = [torch.Generator().manual_seed(each.initial_seed()) for each in arguments[2]]
            asked.append((arguments[0], arguments[1], generators, arguments[3]))
            return super().clip_losses(*arguments, **options)

    config = replace(CONFIG, num_steps=1, max_grad_norm=1e9, condition_dropout=0.0)
    listening: Any = Listening(backbone, 99)
    fine_tune(listening, replace(lesson, counterexamples=None), 1e-2, config, 5, tmp_path / "x", ALONE)
    by_hand = adapted()
    ((targets, conditioning, generators, duration),) = asked
    for row in range(8):
        heard = conditioning.select([row])
        loss = by_hand.clip_losses(targets[row : row + 1], heard, [generators[row]], duration, condition_dropout=0.0)
        (loss.sum() / 8).backward()
    both = zip(adapter_parameters(by_hand).items(), adapter_parameters(backbone).values(), strict=True)
    for (name, hand), each in both:
        assert hand.grad.abs().max() > 0 or "lora_A" in name  # A is behind a B of zeros
        assert torch.allclose(hand.grad, each.grad, rtol=1e-3, atol=1e-4 * float(hand.grad.abs().max())), name
    assert len({generator.initial_seed() for generator in generators}) == 8


def test_a_preference_is_dpos(adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path) -> None:
    """The loss begins at log 2, with half of beta times the gradient of how much more an expert's loss is."""
    others = drawn(adapted(), 90)
    backbone, by_hand, beta = adapted(), adapted(), 7.0
    config = replace(CONFIG, num_steps=1, max_grad_norm=1e9, condition_dropout=0.0, preference_beta=beta)
    asked: list[tuple[Any, ...]] = []

    class Listening(Cramped):
        def clip_losses(self, *arguments: Any, **options: Any) -> torch.Tensor:
            asked.append((*arguments[:2], [each.initial_seed() for each in arguments[2]]))
            return super().clip_losses(*arguments, **options)

    listening: Any = Listening(backbone, 99)
    losses = fine_tune(listening, replace(lesson, counterexamples=others), 1e-2, config, 5, tmp_path / "x", ALONE)
    assert losses == pytest.approx([math.log(2)])
    assert len(asked) == 2 and asked[0][2] == asked[1][2] and asked[0][2][:8] == asked[0][2][8:]
    targets, conditioning, seeds = asked[0]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    expert, other = by_hand.clip_losses(targets, conditioning, generators, 0.512, condition_dropout=0.0).chunk(2)
    (beta / 2 * (expert - other).mean()).backward()
    both = zip(adapter_parameters(by_hand).items(), adapter_parameters(backbone).values(), strict=True)
    for (name, hand), each in both:
        assert torch.allclose(hand.grad, each.grad, rtol=1e-3, atol=1e-3 * float(hand.grad.abs().max())), name


def test_a_preference_is_learned(adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path) -> None:
    others = drawn(adapted(), 90)
    config = replace(CONFIG, num_steps=20)
    backbone = adapted()
    losses, _ = learned(backbone, replace(lesson, counterexamples=others), config, tmp_path / "x")
    assert losses[-1] < 0.95 * math.log(2)
    gaps = []
    for each in (adapted(), backbone):
        with torch.no_grad():
            pair = [
                each.clip_losses(t, PROMPTS, torch.Generator().manual_seed(1), 0.512, condition_dropout=0.0).mean()
                for t in (lesson.targets, others)
            ]
        gaps.append(float(pair[1] - pair[0]))
    assert gaps[1] > gaps[0]
    # nothing can be preferred to itself
    still, _ = learned(adapted(), replace(lesson, counterexamples=lesson.targets), config, tmp_path / "same")
    assert still == pytest.approx([math.log(2)] * 20, abs=1e-4)


def test_killed_and_run_again_is_uninterrupted(adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path) -> None:
    losses, whole = learned(adapted(), lesson, CONFIG, tmp_path / "whole")

    def die(values: object, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(adapted(), lesson, CONFIG, tmp_path / "killed", log=die)
    steps: list[int] = []
    again, resumed = learned(
        adapted(), lesson, CONFIG, tmp_path / "killed", log=lambda values, step: steps.append(step)
    )
    assert steps == [5, 6]  # from the state after the fourth
    assert again == pytest.approx(losses, rel=1e-6)
    close(resumed, whole)


def test_the_average_is_the_adapter(adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path) -> None:
    _, last = learned(adapted(), lesson, replace(CONFIG, ema_decay=0.0), tmp_path / "last")
    _, average = learned(adapted(), lesson, CONFIG, tmp_path / "average")
    start = adapter_state(adapted())
    travelled = [sum(float((s[n] - start[n]).norm()) for n in start) for s in (average, last)]
    assert 0 < travelled[0] < travelled[1]


def test_a_loss_that_is_not_finite_is_one_line(adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path) -> None:
    spoiled = replace(lesson, targets=lesson.targets * torch.nan)
    with pytest.raises(DivergedError, match="not finite in step 1 of 6 at learning rate"):
        learned(adapted(), spoiled, CONFIG, tmp_path / "x")


class Cramped:
    """A backbone that runs out of memory for more than so many clips at once."""

    def __init__(self, backbone: Any, fits: int) -> None:
        self.backbone, self.fits, self.tried = backbone, fits, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def clip_losses(self, targets: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        self.tried.append(len(targets))
        if len(targets) > self.fits:
            raise torch.OutOfMemoryError("no room")
        loss: torch.Tensor = self.backbone.clip_losses(targets, *arguments, **options)
        return loss

    def preference_losses(self, *arguments: Any, guidance_scale: float | None = None, **options: Any) -> torch.Tensor:
        return self.clip_losses(*arguments, **options)


def test_out_of_memory_cuts_the_batch_and_changes_nothing(
    adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path
) -> None:
    _, whole = learned(adapted(), lesson, CONFIG, tmp_path / "whole")
    cramped: Any = Cramped(adapted(), 3 if lesson.counterexamples is None else 6)
    _, cut = learned(cramped, lesson, CONFIG, tmp_path / "cut")
    close(cut, whole, roughly(lesson))
    times = 1 if lesson.counterexamples is None else 2
    assert [tried // times for tried in cramped.tried[:3]] == [8, 4, 2]  # found out once
    nothing: Any = Cramped(adapted(), 0)
    with pytest.raises(InputError, match="out of memory training on a single clip"):
        learned(nothing, lesson, CONFIG, tmp_path / "none")


def test_gradient_checkpointing_is_exact_and_switched_off_after(
    adapted: Callable[[], Any], lesson: Lesson, tmp_path: Path
) -> None:
    _, plain = learned(adapted(), lesson, CONFIG, tmp_path / "plain")
    backbone = adapted()
    _, recomputed = learned(backbone, lesson, replace(CONFIG, gradient_checkpointing=True), tmp_path / "again")
    close(recomputed, plain)
    assert not backbone.trainable_module.is_gradient_checkpointing


def test_the_state_of_another_adapter_is_refused(
    adapted: Callable[[], Any], make_pipeline: Make, wrap: Make, lesson: Lesson, tmp_path: Path
) -> None:
    learned(adapted(), lesson, CONFIG, tmp_path / "state")
    other = wrap(make_pipeline())
    attach_adapter(other, LoraConfig(rank=2), seed=0)
    with pytest.raises(InputError, match="no state of this adapter"):
        learned(other, lesson, CONFIG, tmp_path / "state")
    (tmp_path / "state").write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot be read"):
        learned(adapted(), lesson, CONFIG, tmp_path / "state")
