"""A MusicGen that can learn its own clips: its loss on tokens, tokens of audio, and where LoRA goes.

The loss is the family's own (audiocraft): the cross-entropy of each codebook in the delay pattern, over the steps at
which all codebooks are within the clip, averaged over codebooks; a part of the prompts is left out, so that guidance
keeps its unconditional half. Train on the tokens that were drawn (`Draft.tokens`) where they are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignment.backbones.musicgen import MusicgenBackbone
from alignment.backbones.musicgen_conditions import encode_prompts
from alignment.backbones.requests import check_pairs, tell_apart
from alignment.backbones.token_credit import latent_gradients, token_credits
from alignment.errors import InputError
from alignment.interfaces import Conditioning, LearningDefaults, Reward, TokenSettings

# within `model.decoder`, matched as a whole: attention and feed-forward of its layers, nothing of text encoder or codec
LORA_TARGETS = r"model\.decoder\.layers\.\d+\.((self_attn|encoder_attn)\.(q|k|v|out)_proj|fc[12])"
# of the prompts left out in training, as in MusicGen's own
CONDITION_DROPOUT = 0.1


def delayed(codes: Tensor, delays: Sequence[int], pad: int) -> Tensor:
    """Tokens as the decoder writes them: codebook k begins delays[k] steps late, after padding.

    Args:
        codes: [B, K, T].

    Returns:
        tokens [B, K, T]; what would come after step T is left out.
    """
    frames = codes.shape[-1]
    late = torch.full_like(codes, pad)
    for k, delay in enumerate(delays):
        if delay < frames:
            late[:, k, delay:] = codes[:, k, : frames - delay]
    return late


def codebook_logits(
    decoder: Any,
    codes: Tensor,
    states: Tensor,
    mask: Tensor | None,
    unheard: Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the decoder says of each codebook's tokens, one codebook after the other: logits of all at once are the
    largest tensor of a training step.

    Args:
        decoder: MusicgenForCausalLM or MusicgenMelodyForCausalLM.
        codes: tokens [B, K, T], T above the longest delay.
        states, mask: as in a `Condition`, of B rows, or of 2 B where there is guidance.
        unheard: steps [B, T] whose tokens are to be told without hearing the step before; none if None.
        guidance_scale, temperature: of the logits, as in sampling; 1 for those of the model by itself.

    Yields:
        (tokens [B, T] in the delay pattern, -100 before a codebook begins, float32 logits [B, T, V]).
    """
    config, pad = decoder.config, int(decoder.config.pad_token_id)
    targets = delayed(codes.to(decoder.device), delays_of(config), pad)
    inputs = torch.cat([torch.full_like(targets[..., :1], pad), targets[..., :-1]], dim=-1)
    if unheard is not None:
        inputs = inputs.masked_fill(unheard[:, None].to(inputs.device), pad)
    if guidance_scale != 1:
        inputs = inputs.repeat(2, 1, 1)
    hidden = decoder.model(
        input_ids=inputs.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state[:, -targets.shape[-1] :]
    for k, head in enumerate(decoder.lm_heads):
        # rows of logits as they lie: a class axis in the middle would be copied to the end and back
        logits = head(hidden).float()
        if guidance_scale != 1:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance_scale * (conditional - unconditional)
        if temperature != 1:  # a copy that training without it does not need
            logits = logits / temperature
        yield targets[:, k].masked_fill(targets[:, k] == pad, -100), logits


def delays_of(config: Any) -> list[int]:
    """Steps by which each codebook begins late; those of left and right alternate in a stereo model."""
    return [k // int(config.audio_channels) for k in range(int(config.num_codebooks))]


def token_losses(
    decoder: Any,
    codes: Tensor,
    states: Tensor,
    mask: Tensor | None,
    weights: Tensor | None = None,
    unheard: Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy of each clip's tokens given what the decoder hears of a prompt.

    Args:
        weights: of the codebooks, [K], with sum 1; equal if None.
        others: as for `codebook_logits`.

    Returns:
        loss [B], in nats per token, mean over codebooks by their weights.
    """
    of_codebooks = []
    for own, logits in codebook_logits(decoder, codes, states, mask, unheard, guidance_scale, temperature):
        nats = cross_entropy(logits.flatten(0, 1), own.flatten(), ignore_index=-100, reduction="none").view_as(own)
        of_codebooks.append(nats.sum(dim=-1) / (own != -100).sum(dim=-1))
    each = torch.stack(of_codebooks)
    # not a product of matrices, which autocast would take in half precision
    return each.mean(dim=0) if weights is None else (weights.to(each)[:, None] * each).sum(dim=0)


def clip_losses(
    backbone: MusicgenBackbone,
    prompts: Sequence[str],
    codes: Tensor,
    *,
    condition_dropout: float = CONDITION_DROPOUT,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    drawn_with: TokenSettings | None = None,
) -> Tensor:
    """Cross-entropy of each clip's tokens, differentiable to the decoder's parameters.

    Args:
        backbone: its decoder is run as it is; put it into train mode for dropout.
        prompts: B texts.
        codes: tokens [B, K, T] as `Draft.tokens` or `encode_audio` gives them; T above the longest delay.
        condition_dropout: chance of each clip to be heard without its prompt.
        generator: for that draw, on the CPU: one for all, or one for each clip.
        drawn_with: take the logits that sampling with this guidance and temperature draws from, before improbable
            tokens are left out, and leave no prompt out; None for those of the model by itself.

    Returns:
        loss [B], in nats per token.

    Raises:
        InputError: shapes that do not fit, or clips too short.
    """
    decoder = backbone.model.decoder
    check_codes(backbone, prompts, codes)
    if drawn_with is not None:
        dropped = torch.zeros(len(prompts), dtype=torch.bool)
    elif isinstance(generator, Sequence):
        dropped = torch.cat([torch.rand(1, generator=own) for own in generator]) < condition_dropout
    else:
        dropped = torch.rand(len(prompts), generator=generator) < condition_dropout
    losses = torch.zeros(len(prompts), device=decoder.device)
    for rows, condition in encode_prompts(backbone.model, backbone.tokenizer, prompts, guided=True):
        scale, temperature, heard = 1.0, 1.0, condition
        if drawn_with is not None:
            scale, temperature = drawn_with.guidance_scale, drawn_with.temperature
        if scale == 1:
            # the second half has no prompt
            chosen = torch.arange(len(rows)) + len(rows) * dropped[rows]
            heard = condition.select(chosen.to(decoder.device))
        own = token_losses(
            decoder, codes[rows], heard.states, heard.mask, guidance_scale=scale, temperature=temperature
        )
        losses = losses.index_copy(0, torch.tensor(rows, device=losses.device), own)
    return losses


def check_codes(backbone: MusicgenBackbone, prompts: Sequence[str], codes: Tensor) -> None:
    """
    Raises:
        InputError: shapes that do not fit, or clips too short.
    """
    delays = delays_of(backbone.model.decoder.config)
    if codes.ndim != 3 or codes.shape[:2] != (len(prompts), len(delays)) or codes.shape[-1] <= max(delays):
        raise InputError(
            f"codes have shape {list(codes.shape)}; expected [{len(prompts)}, {len(delays)}, frames] with more than "
            f"{max(delays)} frames"
        )


@torch.no_grad()
def encode_audio(backbone: MusicgenBackbone, wav: Tensor) -> Tensor:
    """Tokens of audio that is there as audio only.

    Args:
        wav: [B, C, T] at the backbone's sample rate and channels.

    Returns:
        codes [B, K, ceil(T / hop_length)] on the backbone's device.

    Raises:
        InputError: another number of channels.
    """
    if wav.ndim != 3 or wav.shape[1] != backbone.channels:
        raise InputError(f"wav has shape {list(wav.shape)}; expected [B, {backbone.channels}, T]")
    codec, codebooks = backbone.codec, int(backbone.model.decoder.config.num_codebooks) // backbone.channels
    wav = wav.to(codec.device, torch.float32)
    sides = [
        codec.encode(wav[:, side : side + 1], bandwidth=codec.config.target_bandwidths[-1]).audio_codes[0]
        for side in range(backbone.channels)
    ]
    # codebooks of left and right alternate
    return torch.stack([codes[:, :codebooks] for codes in sides], dim=2).flatten(1, 2)


class TrainableMusicgenBackbone(MusicgenBackbone):
    """A `MusicgenBackbone` that is a `TrainableBackbone` too: what it learns of a clip are its tokens."""

    lora_target_modules = LORA_TARGETS
    # an expert seen twice or three times still teaches what holds for others: a second look gains half as much again.
    # Clips of one seed are soon different ones, and pairing takes no chance out of a difference: more seeds do.
    # Writing a step of 32 clips takes about twice the time of one of 8
    learning = LearningDefaults(
        objective="gradient",
        kl_weight=0.1,
        num_candidates=3,
        preference_beta=300.0,
        learning_rate=1e-3,
        num_steps=96,
        num_evaluation_seeds=8,
        batch_size=32,
    )

    def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        # frozen, but for what an adapter adds
        self.model.requires_grad_(False)
        self._trainable: torch.nn.Module | None = None

    @property
    def trainable_module(self) -> torch.nn.Module:
        """The language model; assign it wrapped in an adapter, and sampling and training use that."""
        module: torch.nn.Module = self.model.decoder if self._trainable is None else self._trainable
        return module

    @trainable_module.setter
    def trainable_module(self, module: torch.nn.Module) -> None:
        self._trainable = module
        # peft puts its layers into the module it wraps, whose parts are called here one by one
        inner = getattr(module, "get_base_model", None)
        self.model.decoder = module if inner is None else inner()

    @torch.no_grad()
    def generate_targets(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        duration: float | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The tokens [B, K, frames], int64 on the CPU, of the clips that `generate` makes.

        Raises:
            InputError: as `generate`.
            NonFiniteAudioError: names the seeds and prompts of the clips whose logits hold NaN or infinity.
        """
        check_pairs(prompts, seeds)
        settings = self.resolve(duration, num_inference_steps, guidance_scale)
        draft = self.begin(prompts, seeds, settings)
        tokens = draft.tokens(self.num_frames(settings.duration)).cpu()
        return tell_apart(self.name, tokens, draft.sound(), prompts, seeds)

    def decode_targets(self, targets: Tensor, duration: float | None = None) -> Tensor:
        """Tokens [B, K, frames] -> wav float32 [B, C, floor(duration * sample_rate)] in [-1, 1], on the CPU."""
        wav = self.decode(targets.to(self.model.decoder.device))
        return wav[..., : int(self.resolve(duration).duration * self.sample_rate)].to("cpu", torch.float32).clamp(-1, 1)

    def clip_losses(
        self,
        targets: Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = CONDITION_DROPOUT,
    ) -> Tensor:
        """Cross-entropy of each clip [B] in nats per token; see `clip_losses` of this module.

        Raises:
            InputError: shapes that do not fit, clips too short, or a dropout that is no probability.
        """
        texts = list(prompts.prompts if isinstance(prompts, Conditioning) else prompts)
        if not 0 <= condition_dropout < 1:
            raise InputError(f"condition_dropout is {condition_dropout}; expected a number from 0 to below 1")
        return clip_losses(self, texts, targets, condition_dropout=condition_dropout, generator=generator)

    def preference_losses(
        self,
        targets: Tensor,
        prompts: Sequence[str] | Conditioning,
        generator: torch.Generator | Sequence[torch.Generator],
        duration: float | None = None,
        *,
        condition_dropout: float = CONDITION_DROPOUT,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Cross-entropy of each clip [B] in nats per token where it is drawn: with guidance and the default
        temperature. No prompt is left out, so that `condition_dropout` and `generator` have no say.

        What is preferred by the model's own likelihood comes undone under guidance u + g * (c - u): what its
        unconditional half learned is taken away g - 1 times.

        Raises:
            InputError: shapes that do not fit, or clips too short.
        """
        texts = list(prompts.prompts if isinstance(prompts, Conditioning) else prompts)
        return clip_losses(self, texts, targets, drawn_with=self.resolve(guidance_scale=guidance_scale))

    def token_credits(
        self, targets: Tensor, prompts: Sequence[str], reward: Reward, duration: float | None = None
    ) -> Tensor:
        """By how much each clip's reward would change, to first order, with another token in one place: [B, K, T, V] in
        the delay pattern; see `token_credit`.

        Raises:
            InputError: shapes that do not fit, clips too short, or a reward without gradient.
        """
        check_codes(self, prompts, targets)
        samples = int(self.resolve(duration).duration * self.sample_rate)
        gradients = latent_gradients(self, prompts, targets, reward, samples)
        return token_credits(self, targets, gradients, delays_of(self.model.decoder.config))

    def token_log_probabilities(
        self, targets: Tensor, prompts: Sequence[str], *, guidance_scale: float | None = None
    ) -> Tensor:
        """Of every token as it is drawn, with guidance and the default temperature and before improbable ones are left
        out: [B, K, T, V] in the delay pattern, 0 where a codebook has not begun.

        Raises:
            InputError: shapes that do not fit, or clips too short.
        """
        check_codes(self, prompts, targets)
        settings, decoder = self.resolve(guidance_scale=guidance_scale), self.model.decoder
        scale, order, parts = settings.guidance_scale, [], []
        for rows, heard in encode_prompts(self.model, self.tokenizer, prompts, guided=scale != 1):
            found = [
                logits.log_softmax(dim=-1).masked_fill(own[..., None] == -100, 0.0)
                for own, logits in codebook_logits(
                    decoder, targets[rows], heard.states, heard.mask, None, scale, settings.temperature
                )
            ]
            order += rows
            parts.append(torch.stack(found, dim=1))
        return torch.cat(parts)[torch.tensor(order).argsort().to(decoder.device)]

    def save_pretrained(self, directory: Path) -> None:
        """Write model and tokenizer in transformers' layout; an adapter must have been merged before."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
