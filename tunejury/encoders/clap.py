"""LAION-CLAP: what the released TuneJury heads hear audio and read prompts with.

The towers are transformers' (HTSAT and RoBERTa); the front end is our own, in torch: numerically that of the package
the checkpoint was trained with, but differentiable and without its random crop. transformers is imported when an
encoder is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunejury.encoders.linear import replace_linears

SAMPLE_RATE = 48_000
WINDOW = 480_000  # samples: the towers were trained on clips of exactly 10 s
N_FFT = 1024
HOP_LENGTH = 480
N_MELS = 64
LOWEST, HIGHEST = 50.0, 14_000.0  # Hz
MAX_TOKENS = 77

# fields of the configs that carry the towers' shape under the names transformers gives them
AUDIO_SHAPE = (
    "hidden_size", "patch_embeds_hidden_size", "depths", "num_attention_heads", "window_size", "spec_size", "mlp_ratio",
    "projection_hidden_act",
)  # fmt: skip
TEXT_SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "projection_hidden_act",
)  # fmt: skip


@dataclass(frozen=True)
class ClapAudioConfig:
    """Shape of a `ClapAudioEncoder`; left out, that of the music checkpoint (HTSAT-base)."""

    name: str = "laion-clap-audio"
    license: str = "Apache-2.0"
    dim: int = 512
    hidden_size: int = 1024
    patch_embeds_hidden_size: int = 128
    depths: tuple[int, ...] = (2, 2, 12, 2)
    num_attention_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    spec_size: int = 256
    mlp_ratio: float = 4.0
    projection_hidden_act: str = "relu"


@dataclass(frozen=True)
class ClapTextConfig:
    """Shape and vocabulary of a `ClapTextEncoder`; left out, RoBERTa-base without its vocabulary."""

    name: str = "laion-clap-text"
    license: str = "Apache-2.0"
    dim: int = 512
    vocab_size: int = 50_265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    projection_hidden_act: str = "relu"
    vocabulary: tuple[str, ...] = ()
    """Byte-level BPE tokens in the order of their ids, `<s>`, `<pad>`, `</s>` and `<unk>` among them."""
    merges: tuple[str, ...] = ()
    """Byte-level BPE merges, "left right", most frequent first."""


class ClapFrontEnd(nn.Module):
    """From a waveform to the log-mel spectrogram the audio tower reads.

    A clip under 10 s is repeated as often as it fits into 10 s whole, then padded with zeros ("repeatpad"). Periodic
    Hann window of 1024, hop 480, centred with reflection, power, 64 Slaney mels from 50 Hz to 14 kHz,
    10 log10(max(x, 1e-10)).
    """

    window: Tensor
    mel: Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        mel = mel_filter_bank(
            N_FFT // 2 + 1, N_MELS, LOWEST, HIGHEST, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )  # [bins, mels]
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("mel", torch.from_numpy(mel).float(), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """wav [B, T] at 48 kHz, T from 1 to 480,000 -> log-mel [B, 1001, 64] in dB."""
        repeats = WINDOW // wav.shape[-1]
        wav = F.pad(wav.repeat(1, repeats), (0, WINDOW - repeats * wav.shape[-1]))
        with torch.autocast(wav.device.type, enabled=False):  # decibels of half precision would be steps
            spectrum = torch.stft(wav, N_FFT, HOP_LENGTH, window=self.window, pad_mode="reflect", return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()  # [B, bins, frames]
            return 10.0 * (power.transpose(1, 2) @ self.mel).clamp_min(1e-10).log10()


class ClapAudioEncoder(nn.Module):
    """Embeds up to 10 s of mono audio at 48 kHz: HTSAT, a projection, unit length."""

    batches_on_cpu = False

    def __init__(self, config: ClapAudioConfig | None = None) -> None:
        super().__init__()
        from transformers import ClapAudioConfig as TowerConfig
        from transformers import ClapAudioModelWithProjection

        config = config or ClapAudioConfig()
        self.config = config
        self.name, self.license, self.dim = config.name, config.license, config.dim
        self.sample_rate = SAMPLE_RATE
        self.front_end = ClapFrontEnd()
        shape = {field: _plain(getattr(config, field)) for field in AUDIO_SHAPE}
        self.model = ClapAudioModelWithProjection(
            TowerConfig(projection_dim=config.dim, num_mel_bins=N_MELS, enable_fusion=False, **shape)
        )
        replace_linears(self.model)

    def forward(self, wav: Tensor) -> Tensor:
        """Embed audio.

        Args:
            wav: [B, T] mono at 48 kHz, T from 1 to 480,000; what of a longer clip is heard is for a protocol to say.

        Returns:
            Tensor [B, dim], rows of length 1.

        Raises:
            ValueError: `wav` is not [B, T] with T in that range.
        """
        if wav.ndim != 2 or not 1 <= wav.shape[-1] <= WINDOW:
            raise ValueError(f"expected wav [B, T] with T from 1 to {WINDOW} samples, got shape {tuple(wav.shape)}")
        embedding = self.model(input_features=self.front_end(wav)[:, None]).audio_embeds
        return F.normalize(embedding, dim=-1)


class ClapTextEncoder(nn.Module):
    """Embeds prompts: RoBERTa tokens (at most 77), its pooled first token, a projection, unit length.

    An empty or blank prompt is exactly zeros: the heads were trained so, not on the embedding of an empty text.
    """

    def __init__(self, config: ClapTextConfig | None = None) -> None:
        super().__init__()
        from transformers import ClapTextConfig as TowerConfig
        from transformers import ClapTextModelWithProjection

        config = config or ClapTextConfig()
        self.config = config
        self.name, self.license, self.dim = config.name, config.license, config.dim
        self._tokenizer = roberta_tokenizer(config.vocabulary, config.merges) if config.vocabulary else None
        if len(config.vocabulary) > config.vocab_size:
            raise ValueError(f"a vocabulary of {len(config.vocabulary)} tokens, {config.vocab_size} embeddings")
        self.model = ClapTextModelWithProjection(
            TowerConfig(projection_dim=config.dim, **{field: getattr(config, field) for field in TEXT_SHAPE})
        )
        replace_linears(self.model)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, int64 [B, tokens] each, padded to the longest of the prompts.

        Raises:
            ValueError: the encoder was built without a vocabulary.
        """
        if self._tokenizer is None:
            raise ValueError("this text encoder was built without a vocabulary, expected one in its config")
        encodings = self._tokenizer.encode_batch(list(prompts))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        return ids, torch.tensor([encoding.attention_mask for encoding in encodings])

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts: B strings -> [B, dim], rows of length 1, exactly zeros for an empty or blank one."""
        weight = self.model.text_projection.linear2.weight
        embeddings = torch.zeros(len(prompts), self.dim, device=weight.device, dtype=weight.dtype)
        rows = [row for row, prompt in enumerate(prompts) if prompt.strip()]
        if rows:
            ids, mask = self.tokenize([prompts[row] for row in rows])
            outputs = self.model(input_ids=ids.to(weight.device), attention_mask=mask.to(weight.device))
            embeddings[rows] = F.normalize(outputs.text_embeds, dim=-1).to(weight.dtype)
        return embeddings


def roberta_tokenizer(vocabulary: Sequence[str], merges: Sequence[str]) -> Any:
    """RoBERTa's tokeniser (byte-level BPE, `<s> ... </s>`, at most 77 tokens), built from its two lists alone.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        ValueError: a special token is missing, or a merge is not two tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {token: index for index, token in enumerate(vocabulary)}
    special = ("<s>", "</s>", "<pad>", "<unk>")
    missing = [token for token in special if token not in ids]
    if missing:
        raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
    parts = [merge.split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in parts):
        raise ValueError("expected merges of two tokens each")
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[(left, right) for left, right in parts]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    if "<mask>" in ids:
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=ids["<pad>"], pad_token="<pad>")
    return tokenizer


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
