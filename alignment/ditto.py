"""DITTO: optimise the initial latents of a clip through the sampler, the decoder and the judge (arXiv 2401.12179).

The weights of the backbone stay as they are; the noise that a clip starts from moves along the reward's gradient.
Everything that steers a clip (Adam's state, gradient scale, best iterate, stopping) is its own: its result does not
depend on the others in its batch.

    result = optimize_latents(load_backbone("compact-flow"), load_reward("compact"), ["slow jazz"], [0], DittoConfig())
    result.clips[0].optimized       # wav [C, T], beside .baseline and both rewards
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from alignment.backbones.known import AUDIOCRAFT, FAMILIES, SHIPPED, family_of
from alignment.errors import InputError
from alignment.interfaces import Backbone, GenerationSettings, LatentBackbone, Reward
from alignment.strategies import network_evaluations

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is used: checking a configuration must not wait for it


@dataclass(frozen=True)
class DittoConfig:
    """How latents are optimised."""

    num_optimization_steps: int = 20
    """Gradient steps; each costs about three renders."""
    learning_rate: float = 0.05
    """Of Adam, for latents of unit variance; 0 changes nothing."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes: cosine falls to 0 at the end."""
    gradient: Literal["normalize", "clip", "none"] = "normalize"
    """normalize: a clip's gradient to unit RMS; clip: its norm to at most max_gradient_norm; none: as it comes."""
    max_gradient_norm: float = 1.0
    """For gradient clip."""
    regularization: float = 0.01
    """Reward given up per nat by which the latents' norm and channels are unlike fresh noise."""
    project: bool = False
    """Keep the norm of the latents exactly as it was, by projection to their sphere after every step."""
    patience: int = 5
    """Steps without a new high of the held-out judge before a clip whose reward still rises is stopped."""
    backprop_last_steps: int | None = None
    """Go back through so many of the last denoising steps only: faster, with an approximate gradient; None: all."""
    sampler_noise: bool = False
    """Keep the noise that a stochastic sampler draws between steps, fixed by the clip's seed; by default such a sampler
    is replaced by its deterministic counterpart, through which more gradient arrives."""
    num_inference_steps: int | None = None
    """Denoising steps while optimising; None for the backbone's own default, as for the two below."""
    duration: float | None = None
    """Seconds."""
    guidance_scale: float | None = None
    """How closely the prompt is followed; 1 is without guidance."""
    render_steps: int | None = None
    """Denoising steps of the clips that are returned; None: as while optimising."""
    seed: int = 0
    """Of the initial latents, the same for every prompt."""
    batch_size: int = 1
    """Clips optimised at once: memory grows with it; halved where they do not fit."""

    def __post_init__(self) -> None:
        least = {"num_optimization_steps": 0, "batch_size": 1, "patience": 1, "seed": 0}
        least |= {"num_inference_steps": 1, "render_steps": 1, "backprop_last_steps": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise InputError(f"{name} is {value}; expected a whole number of at least {low}")
        for name in ("learning_rate", "regularization", "guidance_scale"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}; expected a finite number of at least 0")
        for name in ("max_gradient_norm", "duration"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; expected a finite number above 0")
        for name, known in (("schedule", ("cosine", "constant")), ("gradient", ("normalize", "clip", "none"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")


@dataclass(frozen=True)
class OptimizedClip:
    """One prompt's result.

    `baseline` and `optimized` are wav float32 [C, T] on the CPU in [-1, 1], rendered by the final render from the
    initial and the best latents; None, with their rewards, where not even the baseline could be rendered. `latents`
    are the best [D, L]. `rewards` and `held_out_rewards` are those of every iterate by the render used while
    optimising, the initial latents' first.
    """

    prompt: str
    seed: int
    baseline: Tensor | None
    optimized: Tensor | None
    baseline_reward: float | None
    optimized_reward: float | None
    latents: Tensor
    latent_shift: float
    """Root mean square by which the best latents differ from the initial ones, which have unit variance."""
    rewards: list[float]
    held_out_rewards: list[float]
    best_step: int
    stopped: str | None
    problem: str | None


@dataclass(frozen=True)
class DittoResult:
    """clips: one per prompt, in order."""

    clips: list[OptimizedClip]


def check_latent_backbone(backbone: Backbone) -> LatentBackbone:
    """The backbone, if its clips start from latents.

    Raises:
        InputError: they do not; it names the backbones whose clips do.
    """
    if isinstance(backbone, LatentBackbone):
        return backbone
    # families of pipelines have latents, those of language models none
    shipped = [name for name, model in SHIPPED.items() if family_of(model.directory) in FAMILIES.values()]
    known = [*shipped, *(f"any {name}" for name in FAMILIES)]
    raise InputError(
        f"{backbone.name} has no initial latents to optimise (MusicGen and {AUDIOCRAFT}... models write tokens); "
        f"DITTO works with {', '.join(known)}"
    )


def evaluations(backbone: Backbone, config: DittoConfig, num_iterates: int) -> float:
    """Evaluations of the denoiser for one clip whose trajectory has so many iterates, the last of which needs no
    gradient: a backward pass counts as two, the recomputing of what was not kept in memory not at all. With the two
    final renders.
    """
    settings, final = _settings(backbone, config)
    forward = network_evaluations(backbone, settings)
    steps = settings.num_inference_steps or 1
    share = min(config.backprop_last_steps or steps, steps) / steps
    gradients = max(num_iterates - 1, 0)
    return num_iterates * forward + gradients * 2 * share * forward + 2 * network_evaluations(backbone, final)


def optimize_latents(
    backbone: Backbone,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: DittoConfig,
    *,
    held_out: Reward | None = None,
) -> DittoResult:
    """Optimise the initial latents of one clip per (prompt, seed) towards a higher reward.

    Args:
        backbone: a `LatentBackbone`; it is not changed.
        reward: what rises; differentiable to its wav.
        prompts: B texts.
        seeds: of the initial latents, B whole numbers.
        config: how.
        held_out: a judge that is not optimised: it chooses the best iterate and stops a clip that only the reward goes
            on liking better (see `Trajectory`).

    Raises:
        InputError: the backbone has no latents, settings it cannot do, or a reward without a gradient.
    """
    from alignment.latent_descent import LatentDescent

    backbone = check_latent_backbone(backbone)
    if len(prompts) != len(seeds) or not prompts:
        raise InputError(f"expected one seed per prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
    settings, final = _settings(backbone, config)
    conditioning = backbone.encode_prompts(prompts, settings.duration)
    initial = backbone.initial_latents(seeds, settings.duration).float()
    task = LatentDescent(backbone, reward, held_out, config, settings, final, conditioning, initial, list(seeds))
    clips: list[OptimizedClip] = []
    for start in range(0, len(prompts), config.batch_size):
        clips += task.clips(list(range(start, min(start + config.batch_size, len(prompts)))))
    return DittoResult(clips)


def _settings(backbone: Backbone, config: DittoConfig) -> tuple[GenerationSettings, GenerationSettings]:
    """(while optimising, of the clips that are returned)."""
    steps = config.num_inference_steps
    settings = backbone.resolve(config.duration, steps, config.guidance_scale)
    return settings, backbone.resolve(config.duration, config.render_steps or steps, config.guidance_scale)
