"""Writing MusicGen's audio tokens, each candidate by draws of its own.

MusicGen (Copet et al., 2023) writes K streams of tokens, codebook k being d(k) steps behind the first. The noise of
step s is the s-th draw of the candidate's own generator, so the length asked for changes nothing that was drawn before:
the beginning of a long clip is the short clip, frame by frame. (The models' own sampling loops put padding behind the
last frame, so that a clip's last frames depend on its length; we go on drawing and cut.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from alignment.backbones.musicgen_conditions import Condition
from alignment.backbones.token_draws import draw, gumbel_noise


class ReservedLayer(DynamicLayer):
    """Keys and values of a layer in memory reserved ahead: a step writes its own and copies nothing.

    The growing layers of transformers join old and new at every step, which moves the whole past each time; its static
    ones attend to all reserved places, used or not. Here attention sees a view of the used places.

    Args:
        reserve: positions to make room for at first; doubled when it is used up.
    """

    def __init__(self, reserve: int) -> None:
        super().__init__()
        self.reserve = reserve
        self._stored: Tensor | None = None  # [2, B, heads, reserve, width]: keys and values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add [B, heads, n, width] each, and return all so far."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self._stored is None or stop > self._stored.shape[-2]:
            self.reserve = max(self.reserve if self._stored is None else 2 * self._stored.shape[-2], stop)
            batch, heads, _, width = key_states.shape
            stored = key_states.new_empty((2, batch, heads, self.reserve, width))
            if self._stored is not None:
                stored[..., :start, :] = self._stored[..., :start, :]
            self._stored = stored
        self.is_initialized, self.dtype, self.device = True, key_states.dtype, key_states.device
        self._stored[0, :, :, start:stop] = key_states
        self._stored[1, :, :, start:stop] = value_states
        self.keys, self.values = self._stored[:, :, :, :stop]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._stored is not None:
            length = self.get_seq_length()
            self._stored = self._stored[:, indices]
            self.keys, self.values = self._stored[:, :, :, :length]


def delays_of(config: Any) -> list[int]:
    """Steps by which each codebook begins late; of a stereo model the codebooks of left and right
    alternate, and both channels' k-th are k steps behind."""
    return [k // int(config.audio_channels) for k in range(int(config.num_codebooks))]


class TokenStream:
    """Candidates being written, a step of all codebooks at a time; may be continued, and thinned out in between.

    Args:
        decoder: MusicgenForCausalLM or MusicgenMelodyForCausalLM.
        condition: of the B candidates.
        seeds: B seeds, one generator on the CPU each: the same noise on every device.
        guidance_scale: logits are u + g * (c - u) of the conditional and unconditional ones; 1 if there are only the
            former.
        temperature, top_k, top_p: as for `draw`.
        num_frames: expected length, for which memory is reserved.
        written: steps [B, K, S] that an earlier stream of the same candidates has drawn (its `drawn`): it is gone on
            behind them. They are heard in one pass.
    """

    def __init__(
        self,
        decoder: Any,
        condition: Condition,
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        temperature: float,
        top_k: int,
        top_p: float,
        num_frames: int,
        written: Tensor | None = None,
    ) -> None:
        config = decoder.config
        self.decoder, self.condition = decoder, condition
        self.guidance_scale, self.temperature, self.top_k, self.top_p = guidance_scale, temperature, top_k, top_p
        self.vocab_size, self.pad = int(config.vocab_size), int(config.pad_token_id)
        self.delays = delays_of(config)
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.steps: list[Tensor] = []  # tokens [B, K] drawn at each step; before a codebook's first frame: padding
        self.guided = len(condition.states) > len(seeds)
        self.sound = torch.ones(len(seeds), dtype=torch.bool, device=decoder.device)
        places = num_frames + max(self.delays) + (condition.states.shape[1] if condition.prepended else 0)
        own = [ReservedLayer(places) for _ in range(int(config.num_hidden_layers))]
        cross = [DynamicLayer() for _ in own]
        self.layers = [*own, *cross]
        self.cache = EncoderDecoderCache(Cache(layers=list(own)), Cache(layers=list(cross)))
        if written is not None and written.shape[-1]:
            self._resume(written.to(decoder.device))

    @torch.no_grad()
    def extend(self, num_frames: int) -> Tensor:
        """Write until there are `num_frames` frames, and return their tokens [B, K, num_frames]."""
        while len(self.steps) < num_frames + max(self.delays):
            self._step()
        drawn = self.drawn()
        return torch.stack([drawn[:, k, d : d + num_frames] for k, d in enumerate(self.delays)], dim=1)

    def drawn(self) -> Tensor:
        """All steps so far [B, K, S]: more than the frames they make, by the longest delay."""
        return torch.stack(self.steps, dim=-1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these candidates only, numbered anew in this order."""
        chosen = torch.tensor(list(rows), device=self.sound.device)
        both = torch.cat([chosen, chosen + len(self.generators)]) if self.guided else chosen
        for layer in self.layers:
            layer.batch_select_indices(both)
        self.condition = self.condition.select(both)
        self.generators = [self.generators[row] for row in rows]
        self.steps = [tokens[chosen] for tokens in self.steps]
        self.sound = self.sound[chosen]

    def _step(self) -> None:
        batch, codebooks, step = len(self.generators), len(self.delays), len(self.steps)
        if step:
            last = self.steps[-1]
        else:
            last = torch.full((batch, codebooks), self.pad, device=self.sound.device)
        hidden = self._hear(last[..., None], first=not step)
        logits = torch.stack([head(hidden) for head in self.decoder.lm_heads], dim=1).float()  # [rows, K, V]
        if self.guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + self.guidance_scale * (conditional - unconditional)
        noise = gumbel_noise(self.generators, (codebooks, self.vocab_size)).to(logits.device)
        tokens, sound = draw(logits, noise, self.temperature, self.top_k, self.top_p)
        if step < max(self.delays):
            begun = torch.tensor([step >= delay for delay in self.delays], device=tokens.device)
            tokens = tokens.where(begun, self.pad)
        self.steps.append(tokens)
        self.sound &= sound.all(dim=-1)

    @torch.no_grad()
    def _resume(self, written: Tensor) -> None:
        self.steps = list(written.unbind(dim=-1))
        for _ in self.steps:
            gumbel_noise(self.generators, (len(self.delays), self.vocab_size))  # what these steps were drawn with
        # the last step is heard when the next is drawn, as it would have been
        before = torch.full_like(written[..., :1], self.pad)
        self._hear(torch.cat([before, written[..., :-1]], dim=-1), first=True)

    def _hear(self, tokens: Tensor, *, first: bool) -> Tensor:
        """The decoder's state [rows, D] after steps [B, K, S] more, the guided rows and behind them the others."""
        rows = tokens.repeat(2 if self.guided else 1, 1, 1)
        # states that stand before the tokens are in the cache after the first time
        states = None if self.condition.prepended and not first else self.condition.states
        hidden: Tensor = self.decoder.model(
            input_ids=rows.flatten(0, 1),
            encoder_hidden_states=states,
            encoder_attention_mask=self.condition.mask,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return hidden
