"""How unlike the candidates of a prompt are: mean pairwise cosine distance of embeddings."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from alignment.work import Key

BANDS, LOWEST, HIGHEST = 64, 40.0, 8_000.0  # of the log-mel embedding; Hz
WINDOW = 0.064  # s


def log_mel_embedding(wav: Tensor, sample_rate: int) -> Tensor:
    """An embedding that needs no model: mean and deviation over time of 64 mel bands from 40 Hz to 8 kHz, in nats.

    A clip's own mean level is taken out, so that loudness alone makes no difference. Bands above half the sample rate
    stay at the floor.

    Args:
        wav: [B, C, T].
        sample_rate: Hz.

    Returns:
        [B, 128] float32.
    """
    import torch

    size = max(64, round(WINDOW * sample_rate))
    mono = torch.nn.functional.pad(wav.float().mean(dim=1), (0, max(0, size - wav.shape[-1])))
    window = torch.hann_window(size, device=mono.device)
    spectrum = torch.stft(mono, size, size // 2, window=window, center=False, return_complex=True).abs().square()
    # triangles between neighbours that are equally far apart on the mel scale 2595 log10(1 + f / 700)
    low, high = (2595 * math.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (torch.linspace(low, high, BANDS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, spectrum.shape[1])[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    bands = torch.minimum(rising, falling).clamp(min=0).to(mono.device)  # [F, BANDS]
    power = torch.einsum("bft,fm->bmt", spectrum, bands)
    # 80 dB below the clip's loudest moment counts as silence
    floor = (power.amax(dim=(1, 2), keepdim=True) * 1e-8).clamp(min=1e-12)
    level = torch.maximum(power, floor).log()
    mean = level.mean(dim=2)
    return torch.cat([mean - mean.mean(dim=1, keepdim=True), level.std(dim=2, correction=0)], dim=1)


def embedding_record(key: Key, embedding: Tensor) -> dict[str, Any]:
    """A line of embeddings.jsonl: the direction of an embedding [E] as float16 in base64."""
    vector = embedding.double().numpy()
    unit = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype("<f2")
    return {"prompt_id": key[0], "candidate": key[1], "embedding": base64.b64encode(unit.tobytes()).decode("ascii")}


def diversities(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Mean pairwise cosine distance (0 alike, 1 unrelated) of the clips of each prompt with at least two.

    With unit vectors u of n clips it is 1 - (|sum u|^2 - sum |u|^2) / (n (n - 1)): only sums are kept.
    """
    sums: dict[str, Any] = {}
    for record in records:
        vector = np.frombuffer(base64.b64decode(record["embedding"]), "<f2").astype(np.float64)
        unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
        total, squares, count = sums.get(record["prompt_id"], (0.0, 0.0, 0))
        sums[record["prompt_id"]] = (total + unit, squares + float(unit @ unit), count + 1)
    return {
        name: float(1 - (total @ total - squares) / (count * (count - 1)))
        for name, (total, squares, count) in sums.items()
        if count > 1
    }
