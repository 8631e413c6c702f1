"""The judge: (waveform, sample rate, prompts) -> reward.

There is one path. Scoring files, ranking candidates, optimising latents and measuring agreement with people all call
`RewardModel.forward`; with gradient or without, alone or in a batch, a clip has one reward.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunejury.calibration import AnchorCalibration
from tunejury.config import RewardConfig
from tunejury.encoders import AudioEncoder, TextEncoder, build_encoder, encoder_kind
from tunejury.ensemble import RewardEnsemble
from tunejury.errors import InputError
from tunejury.head import PromptMatch, RewardHead
from tunejury.precision import full_precision, half_precision
from tunejury.protocol import Hearing, check_clips, get_protocol, hear, listen, listen_windows
from tunejury.saving import save_model


class RewardModel(nn.Module):
    """Frozen encoders and a reward head.

    Built with fresh weights from its config; `load_reward` gives a trained one. The parameters take no gradient, and
    the model stays in evaluation mode even under `.train()`: batch normalisation in training mode would make a clip's
    reward depend on its neighbours. Code that trains a head does so on `features(...)` with its own `RewardHead`.

    Args:
        config: what it is made of.

    Raises:
        InputError: an encoder cannot be built, or its size is not that of its input block, or the protocol is unknown.
    """

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        self._protocol = get_protocol(config.protocol)
        self._calibration: dict[str, Any] | None = None
        self._half_precision: torch.dtype | None = None
        self.encoders = nn.ModuleDict({name: build_encoder(encoder) for name, encoder in config.encoders.items()})
        self._kinds = {name: str(encoder["kind"]) for name, encoder in config.encoders.items()}
        self._modalities = {name: encoder_kind(kind).modality for name, kind in self._kinds.items()}
        self.products = nn.ModuleDict()  # by place among the inputs
        for place, block in enumerate(config.inputs):
            dims = [int(self.encoders[name].dim) for name in block.encoders]  # type: ignore[arg-type]
            if block.kind == "product":
                self.products[str(place)] = PromptMatch(*dims)
            if dims[-1] != block.dim:
                raise InputError(
                    f"input block {place} ({block.kind}) has dim {block.dim}, its encoder gives {dims[-1]}"
                )
        for name in self._audio_encoders():
            self._protocol.hearing(self._kinds[name])
        self.head = RewardHead(config.input_dim, config.head.widths, config.head.dropout)
        self.ensemble = RewardEnsemble(config.input_dim, config.ensemble) if config.ensemble else None
        self.requires_grad_(False)
        self.eval()

    @property
    def protocol(self) -> dict[str, Any]:
        """The listening protocol's record: its name, its version and what each encoder hears. Store it with every
        result.
        """
        calibration = {} if self._calibration is None else {"calibration": dict(self._calibration)}
        return self.listening | calibration

    @property
    def listening(self) -> dict[str, Any]:
        """The part of `protocol` that embeddings depend on: all but the calibration."""
        audio = self._audio_encoders()
        record = self._protocol.record({name: (self._kinds[name], encoder) for name, encoder in audio.items()})
        half = self._half_precision
        return record if half is None else record | {"precision": str(half).removeprefix("torch.")}

    @property
    def device(self) -> torch.device:
        """Where the model is, and where rewards come out."""
        return next(self.head.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.head.parameters()).dtype

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that tell its head, its products and the configs of its encoders from others of
        the same name; the encoders' weights are too large to be read for it.
        """
        digest = hashlib.sha256(json.dumps(self.config.to_dict()["encoders"], sort_keys=True).encode())
        for part in (self.products, self.head, self.ensemble):
            for name, tensor in ({} if part is None else part.state_dict()).items():
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def licenses(self) -> dict[str, str]:
        """Licence of every part, by name: the reward itself (head and projections), then each encoder."""
        return {self.config.name: self.config.license} | {
            name: cast(AudioEncoder, encoder).license for name, encoder in self.encoders.items()
        }

    def train(self, mode: bool = True) -> RewardModel:
        """Stay in evaluation mode, whatever `mode` says (see the class)."""
        return super().train(False)

    def calibrate(self, calibration: AnchorCalibration, system: str) -> None:
        """Put all rewards from now on through a calibration; the protocol's record says so, a saved model does not
        keep it.

        Args:
            calibration: for this judge.
            system: what made the clips that will be judged.

        Raises:
            InputError: the calibration is for another judge.
        """
        calibration.check_reward(self.config.name)
        offset = -calibration.calibrated(0.0, system)  # says so if there was no vote on the system
        self._calibration = {"system": system, "scale": calibration.scale, "offset": offset}

    def use_half_precision(self, dtype: torch.dtype | None) -> None:
        """Let the encoders multiply in half precision; the protocol's record says so, a saved model does not keep it.

        Weights, front ends, normalisations, pooling and the head stay in the model's own precision, and rewards come
        out in it. It is for speed on a GPU, and costs accuracy: candidates closer than that error change places.

        Args:
            dtype: bfloat16; None for the model's own precision again.

        Raises:
            InputError: it is another one (float16 overflows in these encoders), or the model is not in float32.
        """
        if dtype not in (None, torch.bfloat16) or (dtype is not None and self.dtype != torch.float32):
            raise InputError(f"half precision is {dtype} for a judge in {self.dtype}, expected bfloat16 for float32")
        self._half_precision = dtype

    def with_protocol(self, protocol: str) -> RewardModel:
        """The same judge, sharing its weights, that listens by another protocol; without a calibration.

        Raises:
            InputError: there is no such protocol, or it does not say what an encoder hears.
        """
        other = copy.copy(self)
        other.config = replace(self.config, protocol=protocol)
        other._protocol, other._calibration = get_protocol(protocol), None
        for name in other._audio_encoders():
            other._protocol.hearing(other._kinds[name])
        return other

    def forward(self, wav: Tensor, sample_rate: int, prompts: Sequence[str] | None = None) -> Tensor:
        """Reward of each clip, differentiable with respect to `wav`.

        Args:
            wav: [B, C, T] floating point, nominally within [-1, 1]; all clips of a batch have one length.
            sample_rate: Hz of `wav`.
            prompts: B prompts; an empty one, or None for all, means the audio is judged by itself.

        Returns:
            Reward [B], float32 (the model's dtype), on the model's device. Higher is better; a difference of two
            rewards is a log-odds of preference.

        Raises:
            InputError: a shape, type, rate or number of prompts is wrong, or `wav` holds NaN or infinite values.
        """
        return self.reward(*self._encode(wav, sample_rate, prompts))

    @property
    def has_uncertainty(self) -> bool:
        """Whether the judge comes with an ensemble, and so can say how sure it is."""
        return self.ensemble is not None

    def uncertainty(self, wav: Tensor, sample_rate: int, prompts: Sequence[str] | None = None) -> Tensor:
        """How unsure the judge is of each clip's reward: the standard deviation [B] of its ensemble's rewards.

        Of `compact` the members are fits of the unprompted quality to other collections of training data, so prompts
        do not change it, and what all members get wrong does not show; its card says how errors grow with it.

        Arguments and errors as for `forward`.

        Raises:
            InputError: also if the judge has no ensemble.
        """
        self._need_ensemble()
        return self.embedded_uncertainty(*self._encode(wav, sample_rate, prompts))

    def embedded_uncertainty(self, audio: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> Tensor:
        """The uncertainty [B] from embeddings, as `reward` gives the reward."""
        with full_precision(self.device):
            spread = self._need_ensemble().spread(self.features(audio, text))
            return spread if self._calibration is None else spread * abs(self._calibration["scale"])

    def _need_ensemble(self) -> RewardEnsemble:
        if self.ensemble is None:
            raise InputError(
                f"{self.config.name} has no ensemble to tell its uncertainty by (has_uncertainty is False)"
            )
        return self.ensemble

    def _encode(
        self, wav: Tensor, sample_rate: int, prompts: Sequence[str] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        audio = self.encode_audio(wav, sample_rate)
        prompts = [""] * len(wav) if prompts is None else prompts
        if not isinstance(prompts, str) and len(prompts) != len(wav):
            raise InputError(f"expected one prompt per clip, got {len(prompts)} prompts for {len(wav)} clips")
        return audio, self.encode_prompts(prompts)

    def encode_audio(self, wav: Tensor, sample_rate: int) -> dict[str, Tensor]:
        """Embedding [B, dim] of each audio encoder by its name; arguments and errors as for `forward`."""
        return self._listen(wav, sample_rate, listen)

    def window_rewards(self, wav: Tensor, sample_rate: int, prompts: Sequence[str] | None = None) -> Tensor:
        """Reward of each window of each clip, as if its windowed encoder had heard that window alone; an encoder that
        hears the clip in one piece, or in long segments (MERT), hears all of it every time.

        With the `windows` protocol these are the 10 s windows that CLAP's embedding is the mean of.

        Args:
            wav, sample_rate, prompts: as for `forward`.

        Returns:
            Rewards [B, W], differentiable; W is 1 for a clip no longer than a window.

        Raises:
            InputError: as `forward`, or two encoders hear the clip in different numbers of windows.
        """

        def windows(encoder: AudioEncoder, heard: Tensor, hearing: Hearing) -> Tensor:
            if hearing.pooling == "mean":
                return listen_windows(encoder, heard, hearing)
            return listen(encoder, heard, hearing)[:, None]

        audio = self._listen(wav, sample_rate, windows)
        counts = {embeddings.shape[1] for embeddings in audio.values()}
        if len(counts - {1}) > 1:
            raise InputError(f"the encoders hear this clip in {sorted(counts)} windows, expected one number of them")
        text = self.encode_prompts([""] * len(wav) if prompts is None else prompts)
        rewards = []
        for place in range(max(counts, default=1)):
            chosen = {name: rows[:, place if rows.shape[1] > 1 else 0] for name, rows in audio.items()}
            rewards.append(self.reward(chosen, text))
        return torch.stack(rewards, dim=1)

    def window_spread(self, wav: Tensor, sample_rate: int, prompts: Sequence[str] | None = None) -> Tensor:
        """How far the rewards of a clip's windows lie apart: their standard deviation [B], 0 for a clip of one window.

        Arguments and errors as for `window_rewards`.
        """
        return self.window_rewards(wav, sample_rate, prompts).std(dim=1, correction=0)

    def _listen(
        self, wav: Tensor, sample_rate: int, embed: Callable[[AudioEncoder, Tensor, Hearing], Tensor]
    ) -> dict[str, Tensor]:
        sample_rate = check_clips(wav, sample_rate)
        with full_precision(self.device):
            wav = wav.to(self.device, self.dtype)
            # encoders that hear alike at one rate share the resampled clip
            heard: dict[tuple[int, int | None, bool | None], Tensor] = {}
            embeddings = {}
            for name, encoder in self._audio_encoders().items():
                hearing = self._protocol.hearing(self._kinds[name])
                key = (encoder.sample_rate, hearing.through_rate, hearing.limit)
                if key not in heard:
                    heard[key] = hear(wav, sample_rate, encoder, hearing)  # [B, T]
                with half_precision(self.device, self._half_precision):
                    embeddings[name] = embed(encoder, heard[key], hearing).to(self.dtype)
        return embeddings

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Embedding [B, dim] of each text encoder by its name, zeros for an empty prompt.

        Raises:
            InputError: `prompts` is not a sequence of strings.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError(f"expected a list of prompts (text, empty for none), got {prompts!r:.80}")
        distinct = list(dict.fromkeys(prompts))  # the candidates of one prompt share its embedding
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], dtype=torch.long, device=self.device)
        with full_precision(self.device), half_precision(self.device, self._half_precision):
            return {
                name: cast(TextEncoder, encoder)(distinct)[rows].to(self.dtype)
                for name, encoder in self.encoders.items()
                if self._modalities[name] == "text"
            }

    def features(self, audio: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> Tensor:
        """The head's input [B, D]: the blocks of the config, in order.

        Args:
            audio: embeddings from `encode_audio`.
            text: embeddings from `encode_prompts`, for as many prompts as there are clips.

        Raises:
            InputError: the embeddings are not all of one number of clips.
        """
        embeddings = {**audio, **text}
        sizes = {name: len(embedding) for name, embedding in embeddings.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"expected one prompt embedding per clip, got rows by encoder: {sizes}")
        blocks = []
        for place, block in enumerate(self.config.inputs):
            parts = [embeddings[name] for name in block.encoders]
            blocks.append(self.products[str(place)](*parts) if block.kind == "product" else parts[0])
        return torch.cat(blocks, dim=-1)

    def reward(self, audio: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> Tensor:
        """Reward [B] from embeddings, which a caller may have kept; `forward` is the same from a waveform."""
        with full_precision(self.device):
            features = self.features(audio, text)
            # row by row on a CPU, whose products round one row and several differently
            at_once = 1 if features.device.type == "cpu" else max(len(features), 1)
            rewards = torch.cat([self.head(rows) for rows in features.split(at_once)])
            if self._calibration is None:
                return rewards
            return rewards * self._calibration["scale"] - self._calibration["offset"]

    def save_pretrained(
        self, directory: str | Path, *, weights_dtype: torch.dtype = torch.float32, card: str | None = None
    ) -> None:
        """Write `config.json`, `model.safetensors` and `README.md`, which `load_reward` reads back.

        Args:
            directory: where to; made if missing.
            weights_dtype: what floating-point weights are stored as: float32, or float16 for half the size. They are
                float32 again once loaded.
            card: text of the model card; None writes one from the config.

        Raises:
            InputError: a weight cannot be stored in `weights_dtype`.
            OSError: the directory cannot be written to.
        """
        save_model(self, Path(directory), weights_dtype, card)

    def _audio_encoders(self) -> dict[str, AudioEncoder]:
        return {
            name: cast(AudioEncoder, encoder)
            for name, encoder in self.encoders.items()
            if self._modalities[name] == "audio"
        }
