"""The trained part of a reward: from embeddings to one number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tunejury.errors import InputError

LAYERS_PER_WIDTH = 4  # Linear, BatchNorm1d, ReLU, Dropout


class RewardHead(nn.Module):
    """Multilayer perceptron with batch normalisation, laid out as the released TuneJury heads are.

    For each width: Linear, BatchNorm1d, ReLU, Dropout; then Linear to one number. The layers are counted through in
    `net`, so the parameters are named `net.0.weight` (Linear), `net.1.weight` (BatchNorm1d), `net.4.weight` (Linear),
    ...

    Args:
        input_dim: size of the features.
        widths: sizes of the hidden layers.
        dropout: probability of dropping a hidden value in training.
    """

    def __init__(self, input_dim: int, widths: Sequence[int] = (1024, 512, 256, 128), dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = input_dim
        for width in widths:
            layers += [nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
            size = width
        layers.append(nn.Linear(size, 1))
        self.net = nn.Sequential(*layers)
        self.input_dim = input_dim

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, input_dim] -> reward [B]."""
        return self.net(features).squeeze(-1)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], dropout: float = 0.0) -> RewardHead:
        """Build a head from saved parameters, whatever prefix they were saved under (`net.`, `score.`), with its
        widths read from their shapes.

        Args:
            state: parameters and buffers by name.
            dropout: probability for further training (it leaves no trace in a state dict).

        Raises:
            InputError: the names or shapes are not those of such a head.
        """
        parsed = [re.fullmatch(r"((?:[A-Za-z_]\w*\.)*)(\d+)\.(\w+)", name) for name in state]
        prefixes = {match[1] for match in parsed if match}
        if not state or not all(parsed) or len(prefixes) != 1:
            raise InputError(
                f"not a reward head: expected names like net.0.weight under one prefix, got {list(state)[:3]}"
            )
        prefix = prefixes.pop()
        shapes = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in state.items()}
        weights = sorted((int(name.split(".")[0]), shape) for name, shape in shapes.items() if len(shape) == 2)
        if not weights:
            raise InputError("not a reward head: it holds no weight matrix")
        head = cls(weights[0][1][1], [shape[0] for _, shape in weights[:-1]], dropout)
        expected = {name.removeprefix("net."): tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
        if wrong:
            first = wrong[0]
            raise InputError(
                f"not a reward head: {prefix}{first} has shape {shapes.get(first)}, expected {expected.get(first)}"
            )
        odd = sorted(name for name, tensor in state.items() if tensor.is_complex() or tensor.is_quantized)
        if odd:
            raise InputError(f"not a reward head: {odd[0]} holds {state[odd[0]].dtype}")
        head.load_state_dict({f"net.{name.removeprefix(prefix)}": tensor for name, tensor in state.items()})
        return head


class PromptMatch(nn.Module):
    """Elementwise product of an audio embedding, projected to the text embedding's space, and the text embedding.

    The projection is brought to unit root mean square, so that with text embeddings of the same scale the mean of the
    output is a cosine: how well the audio matches the prompt, by direction. Zeros where the prompt is empty.
    """

    def __init__(self, audio_dim: int, text_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(audio_dim, text_dim)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Audio [B, audio_dim], text [B, text_dim] -> [B, text_dim]."""
        projected = self.project(audio)
        return projected * torch.rsqrt(projected.square().mean(-1, keepdim=True) + 1e-6) * text
