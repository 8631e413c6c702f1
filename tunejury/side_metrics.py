"""What the parts of a judge can say beside its reward, at the cost of hearing a clip once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tunejury.model import RewardModel


class Hearing:
    """A judge as a reward callable, whose last batch of clips is kept as heard: asking for its embeddings or the CLAP
    score of the very same tensor costs no second pass of the encoders.

    Args:
        model: the judge.
    """

    def __init__(self, model: RewardModel) -> None:
        self.model = model
        self._last: tuple[Tensor, int, dict[str, Tensor]] | None = None
        if model.has_uncertainty:  # drivers ask for the attribute
            self.uncertainty = self._uncertainty
        names = {encoder["kind"]: name for name, encoder in model.config.encoders.items()}
        self._clap = names.get("clap-audio", ""), names.get("clap-text", "")

    def __call__(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        """The judge's reward [B], with a gradient to clips that ask for one, which are not kept; arguments and errors
        as for `RewardModel.forward`.
        """
        if wav.requires_grad and torch.is_grad_enabled():
            return self.model(wav, sample_rate, prompts)
        with torch.no_grad():
            return self.model.reward(self._hear(wav, sample_rate), self.model.encode_prompts(prompts))

    def _uncertainty(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        """The judge's uncertainty [B]; arguments and errors as for `RewardModel.uncertainty`."""
        with torch.no_grad():
            return self.model.embedded_uncertainty(self._hear(wav, sample_rate), self.model.encode_prompts(prompts))

    @property
    def prompt_match(self) -> Callable[[Tensor, int, Sequence[str]], Tensor] | None:
        """A callable (wav [B, C, T], sample rate in Hz, prompts) -> [B]: what the reward owes to the prompt, the reward
        with it less the reward without one; None for a judge that reads no prompts.
        """
        return self._match if any(block.kind != "audio" for block in self.model.config.inputs) else None

    def _match(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        return self(wav, sample_rate, prompts) - self(wav, sample_rate, [""] * len(prompts))

    def embed(self, wav: Tensor, sample_rate: int) -> Tensor:
        """[B, E], what the audio encoders hear of wav [B, C, T], each encoder's part at unit length so that none
        outweighs another.
        """
        heard = self._hear(wav, sample_rate).values()
        return torch.cat([torch.nn.functional.normalize(part.float(), dim=-1) for part in heard], dim=-1)

    @property
    def clap_score(self) -> Callable[[Tensor, int, Sequence[str]], Tensor] | None:
        """A callable (wav [B, C, T], sample rate in Hz, prompts) -> [B]: the cosine of CLAP's embeddings of clip and
        prompt, in -1 to 1, where the judge has both of CLAP's towers; None where it has not. An empty prompt gives 0.
        """
        return self._score if all(self._clap) else None

    @property
    def matches(self) -> dict[str, Callable[[Tensor, int, Sequence[str]], Tensor]]:
        """How well clips fit their prompts, by name: the CLAP score where the judge has it, else the prompt match."""
        for name, score in (("clap_score", self.clap_score), ("prompt_match", self.prompt_match)):
            if score is not None:
                return {name: score}
        return {}

    def _score(self, wav: Tensor, sample_rate: int, prompts: Sequence[str]) -> Tensor:
        audio, text = self._clap
        read = self.model.encode_prompts(prompts)[text]
        return torch.nn.functional.cosine_similarity(self._hear(wav, sample_rate)[audio].float(), read.float(), dim=-1)

    @torch.no_grad()
    def _hear(self, wav: Tensor, sample_rate: int) -> dict[str, Tensor]:
        if self._last is None or self._last[0] is not wav or self._last[1] != sample_rate:
            self._last = None  # two batches are never held at once
            self._last = wav, sample_rate, self.model.encode_audio(wav, sample_rate)
        return self._last[2]
