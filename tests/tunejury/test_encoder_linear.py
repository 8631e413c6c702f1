"""The large encoders' linear layers: those of torch to the last digits of float32, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tunejury.encoders.linear import EncoderLinear, replace_linears

ROWS, INPUTS, OUTPUTS = 256, 512, 512  # just enough of them
CONVOLUTION = "aten::convolution"


def layers(bias: bool = True) -> tuple[nn.Linear, nn.Sequential]:
    """A linear layer in float64, and ours of the same weights."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias))
    truth = nn.Linear(INPUTS, OUTPUTS, bias).double()
    truth.load_state_dict(ours[0].state_dict())
    ours.requires_grad_(False)
    replace_linears(ours)
    return truth.requires_grad_(False), ours


@pytest.fixture(autouse=True, params=["AVX512", "any other processor"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What torch says it runs on: both ways are walked on every machine."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    threads = torch.get_num_threads()
    yield str(request.param)
    torch.set_num_threads(threads)


def expected(processor: str) -> bool:
    """Whether a large product should go by way of a convolution."""
    return processor == "AVX512" and torch.backends.mkldnn.is_available()


def operators(work: Callable[[], object]) -> set[str]:
    """What torch ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.name for event in profile.events()}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(ROWS, INPUTS), (2, ROWS, INPUTS), (3, 1, ROWS, INPUTS), (ROWS + 1, INPUTS)])
def test_value_and_gradients_are_those_of_a_linear_layer(
    bias: bool, shape: tuple[int, ...], processor: str, threads: int
) -> None:  # fmt: skip
    truth, ours = layers(bias)
    torch.set_num_threads(threads)
    assert (CONVOLUTION in operators(lambda: ours(torch.zeros(shape)))) == expected(processor)
    x = torch.randn(shape, requires_grad=True)
    exact = x.detach().double().requires_grad_()

    def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
        y = layer(x)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return [y, first, second]

    for mine, theirs in zip(results(ours, x), results(truth, exact), strict=True):
        assert mine.dtype == torch.float32 and mine.shape == theirs.shape
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-5 * float(theirs.detach().abs().max()))


def test_strides_of_the_input_do_not_matter() -> None:
    _, ours = layers()
    x = torch.randn(INPUTS, 2, ROWS).permute(1, 2, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(ours(x), ours(x.contiguous()), rtol=0, atol=1e-5)


def test_inference_mode_and_training_give_one_value() -> None:
    _, ours = layers()
    x = torch.randn(ROWS, INPUTS)
    with torch.inference_mode():
        alone = ours(x).clone()
    torch.testing.assert_close(ours(x.requires_grad_()).detach(), alone, rtol=0, atol=0)


def test_gradients_to_the_weights_are_those_of_a_linear_layer() -> None:
    truth, ours = layers()
    x = torch.randn(ROWS, INPUTS)
    truth.requires_grad_(True)
    ours.requires_grad_(True)
    for layer in (truth, ours):
        layer(x.to(next(layer.parameters()).dtype)).pow(2).sum().backward()
    for mine, theirs in zip(ours.parameters(), truth.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        limit = 1e-5 * float(theirs.grad.abs().max())
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=limit)


@pytest.mark.parametrize("case", ["few rows", "no row", "float64", "autocast"])
def test_what_does_not_suit_is_left_to_torch(case: str) -> None:
    truth, ours = layers()
    x = torch.randn({"few rows": 8, "no row": 0}.get(case, ROWS), INPUTS)
    if case == "float64":
        ours, x = ours.double(), x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert CONVOLUTION not in operators(lambda: ours(x))
        y = ours(x)
    assert y.dtype == (torch.bfloat16 if case == "autocast" else x.dtype)
    torch.testing.assert_close(y.double(), truth(x.double()), rtol=0, atol=2e-2 if case == "autocast" else 1e-5)


def test_every_linear_layer_of_the_large_encoders_is_replaced_and_keeps_its_name(
    clap_audio: nn.Module, clap_text: nn.Module, mert: nn.Module
) -> None:
    for encoder in (clap_audio, clap_text, mert):
        kinds = {type(module) for module in encoder.modules() if isinstance(module, nn.Linear)}
        assert kinds == {EncoderLinear}
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4, bias=False)))
    before = {name: tensor.data_ptr() for name, tensor in plain.state_dict().items()}
    replace_linears(plain)
    assert before == {name: tensor.data_ptr() for name, tensor in plain.state_dict().items()}
    assert isinstance(plain[1][0], EncoderLinear)
