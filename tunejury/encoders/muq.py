"""MuQ-MuLan: the encoders of the released head that stands on neither CLAP nor MERT.

Audio: a log-mel spectrogram, two residual convolutions, MuQ's conformer (transformers' Wav2Vec2Conformer), a
transformer, the mean over time, a projection. Text: XLM-RoBERTa, a transformer, the mean over tokens, a projection.
The loading is our own, not that of the `muq` package: that one computes its spectrogram without gradient, needs
torchaudio, and gets no hidden states from transformers 5. transformers is imported when an encoder is built.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunejury.encoders.linear import replace_linears
from tunejury.encoders.mulan import TowerTransformer

SAMPLE_RATE = 24_000
WINDOW = 240_000  # samples: clips of 10 s are embedded one by one
N_FFT = 2048
HOP_LENGTH = 240
N_MELS = 128
SHORTEST = N_FFT // 2 + 1  # samples: the reflected edges of the spectrogram need as many

# fields that carry the conformer's shape under the names transformers and MuQ's config.json give them
CONFORMER_SHAPE = (
    "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "position_embeddings_type", "rotary_embedding_base", "max_source_positions", "conv_depthwise_kernel_size",
)  # fmt: skip
# fields that carry XLM-RoBERTa's
TEXT_SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class MuqAudioConfig:
    """Shape of a `MuqAudioEncoder`; left out, that of MuQ-MuLan-large."""

    name: str = "muq-mulan-audio"
    license: str = "CC BY-NC 4.0"
    dim: int = 512
    mel_mean: float = 6.768444971712967
    """Of the log-mel spectrogram (dB) over the training set, subtracted."""
    mel_std: float = 18.417922652295623
    conv_dim: int = 512
    time_strides: tuple[int, int] = (2, 2)
    hidden_size: int = 1024
    num_hidden_layers: int = 12
    final_norm: bool = True
    """Whether the conformer's last normalisation is applied; not where an inner layer is read."""
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "swish"
    layer_norm_eps: float = 1e-5
    position_embeddings_type: str = "rotary"
    rotary_embedding_base: int = 10_000
    max_source_positions: int = 5000
    conv_depthwise_kernel_size: int = 31
    tower_dim: int = 768
    tower_depth: int = 8
    tower_heads: int = 8
    tower_head_dim: int = 64
    tower_multiple: int = 4


@dataclass(frozen=True)
class MuqTextConfig:
    """Shape and tokeniser of a `MuqTextEncoder`; left out, that of MuQ-MuLan-large without its tokeniser."""

    name: str = "muq-mulan-text"
    license: str = "CC BY-NC 4.0"
    dim: int = 512
    vocab_size: int = 250_002
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    projected: bool = False
    """Whether a projection stands between XLM-RoBERTa and the transformer."""
    tower_dim: int = 768
    tower_depth: int = 8
    tower_heads: int = 8
    tower_head_dim: int = 64
    tower_multiple: int = 4
    tokenizer: str = ""
    """Text of XLM-RoBERTa's tokenizer.json."""


class MuqFrontEnd(nn.Module):
    """From a waveform to the standardised log-mel spectrogram: periodic Hann window of 2048, hop 240, centred with
    reflection, power, 128 mels (2595 log10(1 + f / 700), not normalised) up to 12 kHz, 10 log10(max(x, 1e-10)).
    """

    window: Tensor
    mel: Tensor

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        mel = mel_filter_bank(N_FFT // 2 + 1, N_MELS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk")
        self.mean, self.deviation = mean, deviation
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("mel", torch.from_numpy(mel).float(), persistent=False)  # [bins, mels]

    def forward(self, wav: Tensor) -> Tensor:
        """wav [B, T] at 24 kHz, T >= 1025 -> [B, 128, T // 240], the last frame left out."""
        with torch.autocast(wav.device.type, enabled=False):
            spectrum = torch.stft(wav, N_FFT, HOP_LENGTH, window=self.window, pad_mode="reflect", return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()  # [B, bins, frames]
            level = 10.0 * (power.transpose(1, 2) @ self.mel).clamp_min(1e-10).log10().transpose(1, 2)
            return ((level - self.mean) / self.deviation)[..., :-1]


class ResidualConvolution(nn.Module):
    """Two convolutions over [mels, time] beside a third one, each normalised; halves the mels."""

    def __init__(self, channels_in: int, channels: int, time_stride: int) -> None:
        super().__init__()
        stride = (2, time_stride)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels_in, F, T] -> [B, channels, F / 2, T / time_stride]."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.bn3(self.conv3(x)))


class MuqAudioEncoder(nn.Module):
    """Embeds up to 10 s of mono audio at 24 kHz."""

    batches_on_cpu = False

    def __init__(self, config: MuqAudioConfig | None = None) -> None:
        super().__init__()
        from transformers import Wav2Vec2ConformerConfig
        from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

        config = config or MuqAudioConfig()
        self.config = config
        self.name, self.license, self.dim = config.name, config.license, config.dim
        self.sample_rate = SAMPLE_RATE
        self.front_end = MuqFrontEnd(config.mel_mean, config.mel_std)
        first, second = config.time_strides
        self.convolutions = nn.Sequential(
            ResidualConvolution(1, config.conv_dim, first),
            ResidualConvolution(config.conv_dim, config.conv_dim, second),
        )
        self.flatten = nn.Linear(config.conv_dim * (N_MELS // 4), config.hidden_size)
        shape = {field: getattr(config, field) for field in CONFORMER_SHAPE}
        conformer = Wav2Vec2ConformerConfig(num_hidden_layers=config.num_hidden_layers, layerdrop=0.0, **shape)
        # its position bias is a mask of its own, which transformers' SDPA path does not take
        conformer._attn_implementation = "eager" if config.position_embeddings_type == "relative" else "sdpa"
        self.conformer = Wav2Vec2ConformerEncoder(conformer)
        del self.conformer.pos_conv_embed  # weights that the forward pass never reads
        if not config.final_norm:
            self.conformer.layer_norm = nn.Identity()
        self.proj = nn.Linear(config.hidden_size, config.tower_dim)
        self.transformer = _tower(config)
        self.to_latents = nn.Linear(config.tower_dim, config.dim)
        replace_linears(self)

    def forward(self, wav: Tensor) -> Tensor:
        """Embed audio.

        Args:
            wav: [B, T] mono at 24 kHz, T from 1 to 240,000; one under 43 ms is padded with zeros to it.

        Returns:
            Tensor [B, dim], rows of length 1.

        Raises:
            ValueError: `wav` is not [B, T] with T in that range.
        """
        if wav.ndim != 2 or not 1 <= wav.shape[-1] <= WINDOW:
            raise ValueError(f"expected wav [B, T] with T from 1 to {WINDOW} samples, got shape {tuple(wav.shape)}")
        mel = self.front_end(F.pad(wav, (0, max(0, SHORTEST - wav.shape[-1]))))
        x = self.convolutions(mel[:, None])  # [B, conv_dim, mels / 4, frames / 4]
        x = self.flatten(x.permute(0, 3, 1, 2).flatten(2))  # [B, frames / 4, hidden_size]
        if self.config.position_embeddings_type == "rotary":
            # transformers keeps the angles of the last length, and under inference mode a gradient could not use them
            self.conformer.embed_positions.cached_sequence_length = None
        x = self.transformer(self.proj(self.conformer(x).last_hidden_state)).mean(1)
        return F.normalize(self.to_latents(x), dim=-1)


class MuqTextEncoder(nn.Module):
    """Embeds prompts, each by itself: the tower masks nothing, so a padded prompt would be another one.

    An empty or blank prompt is exactly zeros, as for the other released heads.
    """

    def __init__(self, config: MuqTextConfig | None = None) -> None:
        super().__init__()
        from transformers import XLMRobertaConfig, XLMRobertaModel

        config = config or MuqTextConfig()
        self.config = config
        self.name, self.license, self.dim = config.name, config.license, config.dim
        most = config.max_position_embeddings - config.pad_token_id - 1  # positions count from the padding's id on
        self._tokenizer = xlm_roberta_tokenizer(config.tokenizer, most) if config.tokenizer else None
        if self._tokenizer is not None and self._tokenizer.get_vocab_size() > config.vocab_size:
            raise ValueError(f"{self._tokenizer.get_vocab_size()} tokens, {config.vocab_size} embeddings")
        shape = {field: getattr(config, field) for field in TEXT_SHAPE}
        self.model = XLMRobertaModel(XLMRobertaConfig(**shape), add_pooling_layer=False)
        self.proj = nn.Linear(config.hidden_size, config.tower_dim) if config.projected else nn.Identity()
        self.transformer = _tower(config)
        self.to_latents = nn.Linear(config.tower_dim, config.dim)
        replace_linears(self)

    def tokenize(self, prompt: str) -> Tensor:
        """Token ids of a prompt, int64 [tokens].

        Raises:
            ValueError: the encoder was built without a tokeniser.
        """
        if self._tokenizer is None:
            raise ValueError("this text encoder was built without a tokeniser, expected one in its config")
        return torch.tensor(self._tokenizer.encode(prompt).ids)

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts: B strings -> [B, dim], rows of length 1, exactly zeros for an empty or blank one."""
        weight = self.to_latents.weight
        embeddings = torch.zeros(len(prompts), self.dim, device=weight.device, dtype=weight.dtype)
        for row, prompt in enumerate(prompts):
            if prompt.strip():
                ids = self.tokenize(prompt).to(weight.device)[None]
                x = self.transformer(self.proj(self.model(input_ids=ids).last_hidden_state)).mean(1)
                embeddings[row] = F.normalize(self.to_latents(x), dim=-1)[0].to(weight.dtype)
        return embeddings


def xlm_roberta_tokenizer(content: str, most_tokens: int) -> Any:
    """XLM-RoBERTa's tokeniser from the text of its tokenizer.json; longer prompts lose their end.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        ValueError: it is no tokeniser, or not one that frames a text with `<s>` and `</s>`.
    """
    from tokenizers import Tokenizer

    try:
        json.loads(content)  # a file that is no JSON is told from a JSON that is no tokeniser
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the tokenizers library raises nothing more exact
        raise ValueError(f"no tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(most_tokens)
    framed = tokenizer.encode("a").tokens
    if framed[:1] != ["<s>"] or framed[-1:] != ["</s>"]:
        raise ValueError(f"the tokeniser makes {framed} of 'a', expected <s> ... </s>")
    return tokenizer


def _tower(config: MuqAudioConfig | MuqTextConfig) -> TowerTransformer:
    return TowerTransformer(
        config.tower_dim, config.tower_depth, config.tower_heads, config.tower_head_dim, config.tower_multiple
    )
