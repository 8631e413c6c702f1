"""Backbones whose model is MusicGen, MusicGen-melody or a stereo one, as transformers has them.

A language model writes the tokens of an EnCodec codec, a frame after the other, and the codec turns them into audio.
What is added to the classes of transformers is the sampling (see musicgen_sampling): a candidate depends on its prompt,
seed and settings alone. MusicGen-melody is asked by text alone here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.backbones.musicgen_conditions import Condition, encode_prompts, reads_conditions_first
from alignment.backbones.musicgen_sampling import TokenStream
from alignment.backbones.requests import check_pairs, finished, shorter, token_settings
from alignment.errors import InputError
from alignment.interfaces import GenerationSettings, TokenSettings

# samples decoded at once, over all clips: the codec's widest layer holds 64 channels of them
MAX_DECODED_SAMPLES = 1 << 22
MAX_DECODED_SAMPLES_ON_CPU = 1 << 17  # a clip of 8 s at 16 kHz: eight at once take a CPU longer than one by one


class MusicgenBackbone:
    """A `Backbone` around MusicGen.

    Args:
        model: MusicgenForConditionalGeneration or MusicgenMelodyForConditionalGeneration with an EnCodec codec, on the
            device and in the dtype it is to run in. The codec is run in float32.
        tokenizer: of its text encoder.
        name: what results call it.
        license: of its weights.
        defaults: any of duration (s), guidance_scale, temperature, top_k and top_p, as in a generation_config.json; the
            rest falls back to the family's: 10 s, guidance 3, temperature 1, the 250 most probable tokens.

    Raises:
        InputError: `defaults` holds something the model cannot do, or the parts do not fit each other.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, license: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.tokenizer, self.name, self.license = model.eval(), tokenizer, name, license
        self.codec = model.audio_encoder.float()
        language, codec = model.decoder.config, self.codec.config
        self.sample_rate, self.channels = int(codec.sampling_rate), int(language.audio_channels)
        self.hop_length = int(codec.hop_length)
        codebooks = int(language.num_codebooks) // self.channels
        if int(codec.codebook_size) < language.vocab_size or len(self.codec.quantizer.layers) < codebooks:
            raise InputError(f"the codec of {name} has fewer codes or codebooks than its decoder writes")
        places = int(language.max_position_embeddings) - codebooks
        if reads_conditions_first(model):
            places -= int(model.config.chroma_length)
        self.max_duration = places * self.hop_length / self.sample_rate
        self.defaults = TokenSettings(min(10.0, self.max_duration), None, 3.0, 1.0, 250, 1.0)
        known = {key: value for key, value in (defaults or {}).items() if key in self.defaults.to_dict()}
        self.defaults = self.resolve(**known)

    @staticmethod
    def load_parts(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
        """Model and tokenizer from a directory in transformers' layout with safetensors; none of its code is run.

        Raises:
            ValueError, OSError and what else the libraries raise for a directory they cannot make sense of.
        """
        import transformers

        options = {"local_files_only": True, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(directory, **options)
        if config.audio_encoder.model_type != "encodec":
            raise ValueError(f"its codec is {config.audio_encoder.model_type!r}, expected 'encodec'")
        classes: dict[str, Any] = {
            "musicgen": transformers.MusicgenForConditionalGeneration,
            "musicgen_melody": transformers.MusicgenMelodyForConditionalGeneration,
        }
        model, found = classes[config.model_type].from_pretrained(
            directory, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        missing = sorted(found["missing_keys"])
        if missing:
            # transformers fills the gap with random numbers and only warns
            raise ValueError(f"its weights lack {len(missing)} tensors, first {missing[0]}")
        return model, transformers.AutoTokenizer.from_pretrained(directory, **options)

    def resolve(
        self,
        duration: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> TokenSettings:
        """Fill in the defaults and check the values.

        Raises:
            InputError: a duration that is not positive or longer than the model has positions for, a negative guidance
                scale, an impossible temperature, top_k or top_p, or any num_inference_steps: there are none here.
        """
        return token_settings(
            self.name,
            self.defaults,
            self.sample_rate,
            self.max_duration,
            num_inference_steps=num_inference_steps,
            duration=duration,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """One clip per (prompt, seed).

        The tokens of a clip are the first ones of a longer clip of the same prompt, seed and settings; its audio is
        then the same too, but for the last moments, where the codec looks ahead.

        Args:
            prompts: B texts.
            seeds: B whole numbers.
            duration: seconds.
            temperature, top_k, top_p: see TokenSettings.

        Returns:
            wav float32 [B, C, floor(duration * sample_rate)] in [-1, 1], on the CPU.

        Raises:
            InputError: as `resolve`, unequal numbers of prompts and seeds, or a seed that is no whole number from 0 to
                2**63 - 1.
            NonFiniteAudioError: names the seeds and prompts of the clips whose logits or samples hold NaN or infinity.
        """
        settings = self.resolve(
            duration, num_inference_steps, guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p
        )
        return self.begin(prompts, seeds, settings).extend(settings.duration)

    def begin(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: TokenSettings | None = None,
        written: Sequence[Tensor | None] | None = None,
    ) -> Draft:
        """The candidates of `generate`, to be written further and further and thinned out in between.

        Args:
            settings: as `resolve` gives them; its duration is the length for which memory is reserved.
            written: what an earlier draft of the same prompts, seeds and settings but the duration had `written`, or
                None, for each clip: it is gone on from there.

        Raises:
            InputError: unequal numbers of prompts and seeds, or an impossible seed.
        """
        check_pairs(prompts, seeds)
        begun: list[Tensor | None] = [None] * len(seeds) if written is None else list(written)
        return Draft(self, list(prompts), list(seeds), self.defaults if settings is None else settings, begun)

    def draft_settings(self, settings: GenerationSettings) -> list[GenerationSettings]:
        """Settings whose clips foretell those of `settings`, cheapest first: their first quarter and half."""
        return shorter(settings)

    def cost(self, settings: GenerationSettings) -> float:
        """Evaluations of the decoder for one clip; guidance takes two for each step."""
        steps = self.num_frames(settings.duration) + int(self.model.decoder.config.num_codebooks) // self.channels - 1
        return float(steps * (1 if settings.guidance_scale == 1 else 2))

    def num_frames(self, duration: float) -> int:
        """Frames of tokens that cover so many seconds."""
        return math.ceil(int(duration * self.sample_rate) / self.hop_length)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Audio [B, C, frames * hop_length] of tokens [B, K, frames], not clamped."""
        limit = MAX_DECODED_SAMPLES_ON_CPU if codes.device.type == "cpu" else MAX_DECODED_SAMPLES
        at_once = max(1, limit // (codes.shape[-1] * self.hop_length))
        clips = []
        for some in codes.split(at_once):
            # the codebooks of left and right alternate; the codec is a mono one
            sides = [
                self.codec.decode(some[None, :, side :: self.channels], [None]).audio_values
                for side in range(self.channels)
            ]
            clips.append(torch.cat(sides, dim=1))
        return torch.cat(clips)


class Draft:
    """Clips of a MusicgenBackbone that are written from their start on; made by `MusicgenBackbone.begin`."""

    def __init__(
        self,
        backbone: MusicgenBackbone,
        prompts: list[str],
        seeds: list[int],
        settings: TokenSettings,
        begun: list[Tensor | None],
    ) -> None:
        self.backbone, self.prompts, self.seeds = backbone, prompts, seeds
        self._streams = [
            (
                rows,
                TokenStream(
                    backbone.model.decoder,
                    condition,
                    [seeds[row] for row in rows],
                    guidance_scale=settings.guidance_scale,
                    temperature=settings.temperature,
                    top_k=settings.top_k,
                    top_p=settings.top_p,
                    num_frames=backbone.num_frames(settings.duration),
                    written=before,
                ),
            )
            for members, shared in encode_prompts(
                backbone.model, backbone.tokenizer, prompts, guided=settings.guidance_scale != 1
            )
            for rows, condition, before in _equally_far(members, shared, begun)
        ]

    def tokens(self, num_frames: int) -> Tensor:
        """Write until there are `num_frames` frames, and return their tokens [B, K, num_frames]."""
        parts = [stream.extend(num_frames) for _, stream in self._streams]
        order = torch.tensor([row for rows, _ in self._streams for row in rows]).argsort()
        return torch.cat(parts)[order.to(parts[0].device)]

    def written(self) -> list[Tensor]:
        """The steps [K, S] drawn of each clip, int32 on the CPU: `begin` goes on from them."""
        parts = {row: own for rows, stream in self._streams for row, own in zip(rows, stream.drawn(), strict=True)}
        return [parts[row].to("cpu", torch.int32) for row in range(len(self.prompts))]

    def sound(self) -> Tensor:
        """Whether the logits of each clip were finite so far, bool [B] on the CPU."""
        sound = torch.ones(len(self.prompts), dtype=torch.bool)
        for rows, stream in self._streams:
            sound[rows] = stream.sound.cpu()
        return sound

    def extend(self, duration: float) -> Tensor:
        """Write until `duration` seconds; what was written before is not written again.

        Returns:
            wav float32 [B, C, floor(duration * sample_rate)] from the start on, in [-1, 1], on the CPU.

        Raises:
            InputError: longer than the backbone goes.
            NonFiniteAudioError: names the seeds and prompts of the clips whose logits or samples are not finite.
        """
        backbone = self.backbone
        duration = backbone.resolve(duration).duration
        wav = backbone.decode(self.tokens(backbone.num_frames(duration)))
        wav[~self.sound().to(wav.device)] = torch.nan
        return finished(backbone.name, wav[..., : int(duration * backbone.sample_rate)], self.prompts, self.seeds)

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of all clips but these, which are numbered anew from 0 in this order."""
        self.prompts, self.seeds = [self.prompts[row] for row in rows], [self.seeds[row] for row in rows]
        place = {row: index for index, row in enumerate(rows)}
        kept = []
        for members, stream in self._streams:
            own = [index for index, row in enumerate(members) if row in place]
            if own:
                stream.keep(own)
                kept.append(([place[members[index]] for index in own], stream))
        self._streams = kept


def _equally_far(
    members: list[int], condition: Condition, begun: list[Tensor | None]
) -> Iterator[tuple[list[int], Condition, Tensor | None]]:
    """A group of rows cut into those of which equally much is written: (rows, condition, their steps [B, K, S])."""
    lengths = [0 if begun[row] is None else begun[row].shape[-1] for row in members]  # type: ignore[union-attr]
    for length in dict.fromkeys(lengths):
        places = [place for place, own in enumerate(lengths) if own == length]
        rows = [members[place] for place in places]
        # the unconditional rows are behind the others
        chosen = [place + half for half in range(0, len(condition.states), len(members)) for place in places]
        selected = condition.select(torch.tensor(chosen, device=condition.states.device))
        steps = [begun[row] for row in rows]
        yield rows, selected, torch.stack(steps).long() if length else None  # type: ignore[arg-type]
