"""`render`: the clip that `generate` makes, with a gradient to its initial latents, at bounded memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment import load_backbone
from alignment.errors import InputError

PROMPTS = ["calm piano", "fast drums a b c"]  # of unequal lengths
SEEDS = [3, 1]
Make = Callable[..., Any]


def weights_for(wav: Tensor) -> Tensor:
    return torch.randn(wav.shape, generator=torch.Generator().manual_seed(9))


def gradient(backbone: Any, latents: Tensor, prompts: Any = PROMPTS, **options: Any) -> Tensor:
    """Of a fixed random projection of the clips."""
    leaf = latents.clone().requires_grad_()
    wav = backbone.render(leaf, prompts, **options)
    (weights_for(wav[:1]) * wav).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.abs().max() / reference.abs().max())


@pytest.fixture(scope="module")
def latents(latent_backbone: Any) -> Tensor:
    drawn: Tensor = latent_backbone.initial_latents(SEEDS)
    return drawn


def test_without_gradient_it_is_what_generate_makes(latent_backbone: Any, latents: Tensor) -> None:
    expected = latent_backbone.generate(PROMPTS, SEEDS)
    with torch.no_grad():
        assert torch.equal(latent_backbone.render(latents, PROMPTS, seeds=SEEDS).clamp(-1, 1), expected)
        deterministic = latent_backbone.render(latents, PROMPTS)
    stochastic = latent_backbone._deterministic_scheduler() is not None
    assert torch.equal(deterministic.clamp(-1, 1), expected) != stochastic
    with_gradient = latent_backbone.render(latents.clone().requires_grad_(), PROMPTS, seeds=SEEDS)
    assert (with_gradient.detach().clamp(-1, 1) - expected).abs().max() <= 1e-6


def test_gradient_is_the_same_with_and_without_checkpointing(latent_backbone: Any, latents: Tensor) -> None:
    whole = gradient(latent_backbone, latents, checkpoint=False)
    assert whole.isfinite().all() and whole.flatten(1).norm(dim=1).min() > 1e-4
    assert relative(gradient(latent_backbone, latents) - whole, whole) <= 1e-5


@pytest.mark.parametrize("family", ["stable-audio-3", "stable-audio", "ace-step", "longcat", "audioldm2"])
def test_gradient_matches_finite_differences(make_pipeline: Make, wrap: Make, family: str) -> None:
    backbone = wrap(make_pipeline(family))
    latents, step = backbone.initial_latents(SEEDS), 3e-3
    if family == "stable-audio":  # so untrained, its slope changes within steps that float32 can tell apart
        backbone.pipeline.to(torch.float64)
        latents, step = latents.double(), 1e-6
    analytic = gradient(backbone, latents).double()
    # along the gradient itself, where the slope is steepest against the rounding of the forward pass
    direction = analytic / analytic.norm()
    with torch.no_grad():
        wav = [backbone.render((latents + sign * step * direction).to(latents), PROMPTS).double() for sign in (1, -1)]
    slope = (weights_for(wav[0][:1]) * (wav[0] - wav[1])).sum() / (2 * step)
    assert abs(slope / analytic.norm() - 1) < 0.02


def test_gradient_of_a_clip_does_not_depend_on_its_batch(latent_backbone: Any, latents: Tensor) -> None:
    together = gradient(latent_backbone, latents)
    alone = [gradient(latent_backbone, latents[row : row + 1], PROMPTS[row : row + 1]) for row in range(2)]
    assert relative(together - torch.cat(alone), together) <= 5e-3


def test_equal_clips_in_a_batch_have_a_gradient_each(latent_backbone: Any, latents: Tensor) -> None:
    """Guided or not: two equal rows are not the two halves of a guided call."""
    pair, prompts = latents[:1].repeat(2, 1, 1), PROMPTS[:1] * 2
    for guidance_scale in (1.0, 2.0):
        got = gradient(latent_backbone, pair, prompts, guidance_scale=guidance_scale)
        assert got[1].abs().max() > 0 and relative(got[1] - got[0], got) <= 1e-3


def test_prompts_encoded_once_serve_many_renders(latent_backbone: Any, latents: Tensor) -> None:
    conditioning = latent_backbone.encode_prompts(PROMPTS)
    calls: list[int] = []
    encoder = latent_backbone.pipeline.text_encoder
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: calls.append(1))
        for module in encoder.modules()
        if isinstance(module, torch.nn.Embedding)
    ]
    with torch.no_grad():
        expected = latent_backbone.render(latents, PROMPTS)
        assert calls
        calls.clear()
        assert torch.equal(latent_backbone.render(latents, conditioning), expected)
        second = latent_backbone.render(latents[1:], conditioning.select([1]))
    # ACE-Step's lyrics go through the embedding alone, within encode_prompt as well
    assert not calls
    for hook in hooks:
        hook.remove()
    assert (second - expected[1:]).abs().max() <= 1e-4


def test_last_steps_alone(latent_backbone: Any, latents: Tensor) -> None:
    """Fewer steps to go back through: the same sound, another gradient; all steps are the whole gradient."""
    whole = gradient(latent_backbone, latents, num_inference_steps=4)
    for steps in (4, 99):
        options = {"num_inference_steps": 4, "backprop_last_steps": steps}
        assert torch.equal(gradient(latent_backbone, latents, **options), whole)
    last = gradient(latent_backbone, latents, num_inference_steps=4, backprop_last_steps=1)
    assert last.isfinite().all() and last.abs().max() > 0 and relative(last - whole, whole) > 1e-3
    with torch.no_grad():
        expected = latent_backbone.render(latents, PROMPTS, num_inference_steps=4)
    shortened = latent_backbone.render(
        latents.clone().requires_grad_(), PROMPTS, num_inference_steps=4, backprop_last_steps=1
    )
    assert (shortened.detach() - expected).abs().max() <= 1e-6


def test_only_the_last_steps_are_recomputed(latent_backbone: Any, latents: Tensor) -> None:
    denoiser = getattr(latent_backbone.pipeline, latent_backbone.denoiser_name)
    calls: list[bool] = []
    hook = denoiser.register_forward_pre_hook(lambda module, inputs: calls.append(torch.is_grad_enabled()))
    options = {"num_inference_steps": 5, "backprop_last_steps": 2}
    gradient(latent_backbone, latents[:1], PROMPTS[:1], **options)
    hook.remove()
    per_step = latent_backbone._calls_per_step(2.0)
    assert calls == [False] * 3 * per_step + [True] * 4 * per_step


def test_the_pipeline_is_left_as_it_was(latent_backbone: Any, latents: Tensor) -> None:
    pipeline = latent_backbone.pipeline
    before, call = dict(pipeline.components), type(pipeline).__call__
    gradient(latent_backbone, latents)
    assert all(pipeline.components[name] is part for name, part in before.items())
    assert type(pipeline).__call__ is call and torch.is_grad_enabled()
    parameters = [each for part in before.values() if isinstance(part, torch.nn.Module) for each in part.parameters()]
    assert all(each.grad is None and not each.requires_grad for each in parameters)


@pytest.mark.parametrize("family", ["stable-audio-3", "stable-audio"])
def test_noise_of_a_stochastic_sampler_hides_the_latents_and_the_ode_does_not(
    make_pipeline: Make, wrap: Make, family: str
) -> None:
    # an untrained denoiser of small gain: steep ones magnify what little is left of the latents
    settings = {"stochastic_sampling": True, "gain": 0.7} if family == "stable-audio-3" else {}
    backbone = wrap(make_pipeline(family, **settings), guidance_scale=1.0)
    latents = backbone.initial_latents(SEEDS)
    through_ode = gradient(backbone, latents, num_inference_steps=8)
    through_noise = gradient(backbone, latents, num_inference_steps=8, seeds=SEEDS)
    assert 10 * through_noise.norm() < through_ode.norm()


@pytest.fixture
def new_objects_only() -> Iterator[None]:
    """The garbage collector lists, and searches, only what is made from here on."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def kept_for_backward(backbone: Any, latents: Tensor, prompts: Any, **options: Any) -> int:
    """Bytes alive after a render: what autograd saved, and what Python objects such as checkpoints hold."""
    found: dict[int, int] = {}  # address -> bytes

    def note(each: Tensor) -> Tensor:
        found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        return each.detach()  # with its history it would be part of a cycle that is never freed

    with torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
        wav = backbone.render(latents.clone().requires_grad_(), prompts, **options)
    assert wav.requires_grad
    gc.collect()
    for each in gc.get_objects():
        if type(each) is Tensor:
            note(each)
    for part in backbone.pipeline.components.values():
        for each in part.state_dict().values() if isinstance(part, torch.nn.Module) else ():
            found.pop(each.untyped_storage().data_ptr(), None)
    return sum(found.values())


@pytest.mark.parametrize("family", ["stable-audio-3", "stable-audio", "ace-step", "longcat", "audioldm2"])
@pytest.mark.usefixtures("new_objects_only")
def test_a_step_keeps_no_more_than_its_latents(make_pipeline: Make, wrap: Make, family: str) -> None:
    """Not the denoiser's activations, nor the conditioning, which pipelines concatenate anew in every step."""
    # ACE-Step's guidance is not linear, so a step saves some more of what has the size of the latents
    guidance = 1.0 if family == "ace-step" else 2.0
    backbone = wrap(make_pipeline(family), guidance_scale=guidance)
    latents, conditioning = backbone.initial_latents([0]), backbone.encode_prompts(["calm piano"])

    def kept(steps: int, checkpoint: bool) -> int:
        return kept_for_backward(backbone, latents, conditioning, num_inference_steps=steps, checkpoint=checkpoint)

    kept(1, True)  # fills caches of position encodings
    own = latents.numel() * 4
    per_step = (kept(8, True) - kept(4, True)) / 4
    assert per_step <= 2 * own + 256  # once, although guidance runs it twice; timesteps
    assert per_step < 0.1 * (kept(4, False) - kept(2, False)) / 2


@pytest.mark.usefixtures("new_objects_only")
def test_memory_of_the_shipped_backbone_hardly_grows_with_the_steps() -> None:
    """The peak is what is kept plus the activations of the one denoiser call that is being recomputed."""
    backbone: Any = load_backbone("compact-flow", device="cpu")
    latents, conditioning = backbone.initial_latents([0], 1.0), backbone.encode_prompts(["calm piano"], 1.0)

    def kept(steps: int, checkpoint: bool) -> int:
        return kept_for_backward(backbone, latents, conditioning, num_inference_steps=steps, checkpoint=checkpoint)

    call = kept(2, False) - kept(1, False)
    assert kept(50, True) + call <= 1.2 * (kept(8, True) + call)
    assert kept(50, True) < 2 * call  # without, it would be fifty


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"initial_latents": torch.zeros(2, 4, 31)}, r"shape \[2, 4, 31\]; expected \[2, 4, 32\]"),
        ({"initial_latents": torch.zeros(1, 4, 32)}, "for 2 prompts"),
        ({"duration": 0.2}, "expected .2, 4, 14."),
        ({"seeds": [1]}, "one seed per prompt"),
        ({"backprop_last_steps": 0}, "backprop_last_steps is 0"),
        ({"backprop_last_steps": 1.0}, "backprop_last_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"prompts": []}, "at least one prompt"),
    ],
)
def test_what_does_not_fit_is_named(make_pipeline: Make, wrap: Make, wrong: dict[str, Any], named: str) -> None:
    backbone = wrap(make_pipeline())
    with pytest.raises(InputError, match=named):
        backbone.render(**{"initial_latents": torch.zeros(2, 4, 32), "prompts": PROMPTS, **wrong})
    with pytest.raises(InputError, match="encoded for 0.512 s"):
        backbone.render(torch.zeros(2, 4, 32), backbone.encode_prompts(PROMPTS), 0.3)
