"""What the parts of a judge can say beside its reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tunejury.model import RewardModel


def audio_embeddings(model: RewardModel) -> Callable[[Tensor, int], Tensor]:
    """A callable (wav [B, C, T], sample rate in Hz) -> [B, E] of what the judge's audio encoders hear, each encoder's
    part at unit length so that none outweighs another.
    """

    def embed(wav: Tensor, sample_rate: int) -> Tensor:
        heard = model.encode_audio(wav, sample_rate)
        return torch.cat([torch.nn.functional.normalize(part.float(), dim=-1) for part in heard.values()], dim=-1)

    return embed


def clap_score(model: RewardModel) -> Callable[[Tensor, int, Sequence[str]], Tensor] | None:
    """A callable (wav [B, C, T], sample rate in Hz, prompts) -> [B]: the cosine of CLAP's embeddings of clip and
    prompt, in -1 to 1, where the judge has both of CLAP's towers; None where it has not. An empty prompt gives 0.
    """
    names = {encoder["kind"]: name for name, encoder in model.config.encoders.items()}
    audio, text = (names.get(kind) for kind in ("clap-audio", "clap-text"))
    if audio is None or text is None:
        return None

    def score(wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        heard, read = model.encode_audio(wav, sample_rate)[audio], model.encode_prompts(prompts)[text]
        return torch.nn.functional.cosine_similarity(heard.float(), read.float(), dim=-1)

    return score
