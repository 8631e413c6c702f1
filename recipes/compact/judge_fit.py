"""Fit one reward on cached statistics: the teacher's scale, clean over spoiled, the right prompt over a wrong one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from judge_cache import VERSIONS, Cache
from judge_data import ComposedClips, Track
from judge_quality import QualityConfig
from pretrain_judge import Pretraining, contrast, shorten
from prompt_words import near_miss, training_prompt
from torch import Tensor, nn

from tunejury.head import RewardHead

LIFT = 32.0  # rewards; the estimate never falls this low


@dataclass(frozen=True)
class FitConfig:
    """Settings of the last layers' fit."""

    heads: int = 4
    """Fitted one after another and averaged, as one head: what only one of them has learned by heart counts less."""
    steps: int = 600
    """Of each head."""
    widths: tuple[int, ...] = (128, 32)
    """Of each head."""
    dropout: float = 0.0
    input_noise: float = 0.25
    """Standard deviation of the noise added to the embedding, as a share of its own."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    rank_weight: float = 0.5
    quality_weight: float = 5.0
    """Weight of agreeing with the linear estimate of the teacher's reward (judge_quality.py) on every clean clip."""
    teacher_weight: float = 0.1
    """Weight of the training tracks' own rewards on top of it."""
    ladder_weight: float = 1.5
    prompt_weight: float = 0.7
    prompt_strength: float = 2.0
    """How many times the match counts after the fit. 2 kept slightly better matching clips of compact-flow than 1 on
    development prompts, within what chance allows. The unprompted reward does not change."""
    tracks: int = 64
    clips: int = 64
    tagged: int = 128
    """Clips with features of the tagging network, per step; tracks and composed clips above."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    seed: int = 0


class Judge(nn.Module):
    """The trainable last layers, from statistics and prompts to the reward."""

    def __init__(self, encoders: Pretraining, config: FitConfig) -> None:
        super().__init__()
        self.audio, self.text, self.match = encoders.audio, encoders.text, encoders.match
        self.log_scale = encoders.log_scale
        self.widths = config.widths
        self.head = RewardHead(self.audio.dim + self.text.dim, config.widths, config.dropout)
        self.noise = config.input_noise

    def embed(self, statistics: Tensor) -> Tensor:
        """Statistics [..., D] -> audio embeddings [..., dim], as `CompactAudioEncoder.forward` makes them."""
        normalize = self.audio.normalize
        x = (statistics - normalize.running_mean) / (normalize.running_var + normalize.eps).sqrt()
        embedding = self.audio.linear(x) + self.audio.mlp(x)
        if self.training:
            embedding = embedding + self.noise * embedding.std(0) * torch.randn_like(embedding)
        return embedding

    def reward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Embeddings [B, dim] and [B, text dim] -> reward [B]: the linear estimate, corrected by the head."""
        return audio[:, -1] + self.head(torch.cat([audio, self.match(audio, text)], dim=-1))

    @torch.no_grad()
    def whole_head(self) -> RewardHead:
        """The head with the linear estimate inside: one more unit per layer hands it through.

        The unit adds `LIFT` before each rectifier, far above what the estimate can fall to, and the last layer takes it
        off again, so nothing is bent.
        """
        estimate = self.audio.dim - 1
        widths = [width + 1 for width in self.widths]
        whole = RewardHead(self.audio.dim + self.text.dim, widths).eval()
        inputs = None
        for place, layer in enumerate(self.head.net):
            wide = whole.net[place]
            if isinstance(layer, nn.Linear) and isinstance(wide, nn.Linear):
                wide.weight.zero_()
                wide.bias.zero_()
                rows, columns = layer.weight.shape
                wide.weight[:rows, :columns] = layer.weight
                wide.bias[:rows] = layer.bias
                last = rows == 1
                wide.weight[-1, estimate if inputs is None else inputs] = 1.0
                wide.bias[-1] += -LIFT if last else LIFT if inputs is None else 0.0
                inputs = rows
            elif isinstance(layer, nn.BatchNorm1d) and isinstance(wide, nn.BatchNorm1d):
                for name, neutral in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                    values = getattr(wide, name)
                    values.fill_(neutral)
                    values[:-1] = getattr(layer, name)
        return whole

    def silent(self, count: int) -> Tensor:
        """Text embeddings of empty prompts."""
        return torch.zeros(count, self.text.dim, device=self.log_scale.device)


def teacher_loss(reward: Tensor, teacher: Tensor, rank_weight: float) -> Tensor:
    """Huber regression on the teacher's reward plus Bradley-Terry over all pairs with the teacher's odds as target."""
    margin, target = reward[:, None] - reward[None], teacher[:, None] - teacher[None]
    rank = F.binary_cross_entropy_with_logits(margin, torch.sigmoid(target))
    return F.smooth_l1_loss(reward, teacher) + rank_weight * rank


def ladder_loss(clean: Tensor, spoiled: Tensor, strength: Tensor) -> Tensor:
    """Clean above spoiled, by more the stronger the fault: rewards [B], strengths [B] -> scalar.

    Steep, so that what is far enough apart has no say: the faults that are hard to hear have it.
    """
    return F.softplus(5.0 * (0.3 + 0.8 * strength - (clean - spoiled))).mean() / 5.0


def widths_of(head: RewardHead) -> list[int]:
    """Sizes of its hidden layers."""
    return [layer.num_features for layer in head.net if isinstance(layer, nn.BatchNorm1d)]


@torch.no_grad()
def averaged(heads: list[RewardHead]) -> RewardHead:
    """One head that gives the mean of what `heads` give, all of as many layers."""
    widths = [sum(widths) for widths in zip(*map(widths_of, heads), strict=True)]
    whole = RewardHead(heads[0].input_dim, widths).eval()
    for place, layer in enumerate(whole.net):
        each: list[Any] = [head.net[place] for head in heads]
        if isinstance(layer, nn.BatchNorm1d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(layer, name).copy_(torch.cat([getattr(one, name) for one in each]))
        elif isinstance(layer, nn.Linear):
            weights, biases = [one.weight for one in each], [one.bias for one in each]
            if layer is whole.net[-1]:
                layer.weight.copy_(torch.cat(weights, 1) / len(heads))
                layer.bias.copy_(torch.stack(biases).mean(0))
            else:  # all read the input, then each only itself
                layer.weight.copy_(torch.cat(weights) if place == 0 else torch.block_diag(*weights))
                layer.bias.copy_(torch.cat(biases))
    return whole


def fit(
    encoders: Pretraining,
    cache: Cache,
    tracks: list[Track],
    clips: ComposedClips,
    rows: np.ndarray,
    config: FitConfig,
    with_prompts: bool = True,
    match_fixed: bool = False,
    log: Any = None,
) -> Judge:
    """Fit the last layers on the tracks `rows` and all cached clips.

    Args:
        encoders: with the estimate (`add_quality`) in the audio embedding; text and match are changed in place.
        with_prompts: False leaves the prompt tasks out.
        match_fixed: leave the text encoder and the match as they are; else they are taught along with the first head.

    Returns:
        The judge in evaluation mode.
    """
    found = []
    for number in range(config.heads):
        torch.manual_seed(config.seed + 1000 * number)
        judge = Judge(encoders, config)
        fit_head(judge, cache, tracks, clips, rows, config, number, with_prompts, match_fixed or number > 0, log)
        found.append(judge.head)
    judge.head = averaged(found)
    judge.widths = tuple(config.heads * width for width in config.widths)
    with torch.no_grad():
        first = judge.head.net[0]
        assert isinstance(first, nn.Linear)
        first.weight[:, judge.audio.dim :] *= config.prompt_strength
    return judge.eval()


def fit_head(
    judge: Judge, cache: Cache, tracks: list[Track], clips: ComposedClips, rows: np.ndarray, config: FitConfig,
    number: int, with_prompts: bool, match_fixed: bool, log: Any,
) -> None:  # fmt: skip
    """Fit the head of `judge`, and its text encoder and match too if they are not fixed; arguments as of `fit`."""
    rng = np.random.default_rng((config.seed, number))
    rewards = torch.tensor([track.reward for track in tracks])
    judge.train()
    judge.audio.requires_grad_(False)  # 257 rewards are too few to change what it hears: it learns them by heart
    fast = [*judge.head.parameters(), *([] if match_fixed else [*judge.match.parameters(), judge.log_scale])]
    groups: list[dict[str, Any]] = [{"params": fast, "lr": config.learning_rate}]
    for part in (judge.text, judge.match):
        part.requires_grad_(not match_fixed)
    if not match_fixed:
        groups.append({"params": list(judge.text.parameters()), "lr": 0.3 * config.learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in groups], total_steps=config.steps, pct_start=0.1
    )
    windows, count = cache.tracks.shape[1], len(cache.clips)
    for step in range(config.steps):
        chosen = torch.from_numpy(rng.choice(rows, min(config.tracks, len(rows)), replace=False))
        heard = int(rng.choice([1, 2, 4]))
        at = torch.from_numpy(np.stack([rng.permutation(windows)[:heard] for _ in chosen]))
        clean = judge.embed(cache.tracks[chosen[:, None], at])
        spoiled = judge.embed(cache.spoiled_tracks[chosen[:, None], at[:, :1]])[:, 0]
        picked = torch.from_numpy(rng.integers(0, count, config.clips))
        good, bad = judge.embed(cache.clips[picked]), judge.embed(cache.spoiled_clips[picked])
        junk = judge.embed(cache.junk[torch.from_numpy(rng.integers(0, len(cache.junk), 12))])

        tagged = judge.embed(cache.tagged[torch.from_numpy(rng.integers(0, len(cache.tagged), config.tagged))])

        n, m = len(chosen), len(picked)
        audio = [clean.mean(1), clean[:, 0], spoiled, good, bad, junk, tagged]
        text = [judge.silent(3 * n + 2 * m + len(junk) + len(tagged))]
        if with_prompts:
            attributes = [clips.records[int(i) // VERSIONS]["attributes"] for i in picked]
            true = judge.text([training_prompt(a, rng) for a in attributes])
            misses = [near_miss(a, rng) for a in attributes]
            pairs = judge.text([right for right, _, _ in misses] + [wrong for _, wrong, _ in misses])
            captions = judge.text([shorten(tracks[int(i)].caption, rng) for i in chosen])
            # the last two: a fault counts with a prompt too
            audio += [good, good, good, good, bad, clean[:, 0], clean[:, 0]]
            text += [true, true.roll(1, 0), pairs[:m], pairs[m:], true, captions, captions.roll(1, 0)]
        reward = judge.reward(torch.cat(audio), torch.cat(text))
        mean, one, off, fine, poor, none, read, *prompted = reward.split([len(a) for a in audio])

        teacher = rewards[chosen]
        loss = config.teacher_weight * teacher_loss(mean, teacher, config.rank_weight)
        sound = torch.cat([mean, one, fine, read])
        quality = torch.cat([clean.mean(1), clean[:, 0], good, tagged])[:, -1]  # the embedding's last dimension
        loss = loss + config.quality_weight * teacher_loss(sound, quality, config.rank_weight)
        ladder = ladder_loss(one, off, cache.track_strength[chosen, at[:, 0]])
        ladder = ladder + ladder_loss(fine, poor, cache.clip_strength[picked])
        level = torch.cat([fine, one])
        ladder = ladder + 0.3 * F.softplus(2.0 + none[:, None] - level[None]).mean()
        loss = loss + config.ladder_weight * ladder
        if with_prompts:
            right, wrong, near, miss, poor_right, told, untold = prompted
            prompt = F.softplus(2 * (1.2 - right + wrong)).mean() / 2 + F.softplus(2 * (0.8 - near + miss)).mean() / 2
            prompt = prompt + 0.2 * F.softplus(2 * (0.5 - told + untold)).mean() / 2
            # a prompt shifts the scale about the unprompted reward, it does not move it
            prompt = prompt + 0.3 * F.smooth_l1_loss((right + wrong) / 2, fine.detach())
            prompt = prompt + 0.3 * F.smooth_l1_loss((told + untold) / 2, one.detach())
            prompt = prompt + 0.5 * ladder_loss(right, poor_right, cache.clip_strength[picked])
            ones = torch.ones(1, judge.text.dim)
            scale = judge.log_scale.exp().clamp(max=40.0) / judge.text.dim
            prompt = prompt + 0.15 * contrast(scale * judge.match(good, ones) @ true.T)
            loss = loss + config.prompt_weight * prompt
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 5.0)
        optimizer.step()
        schedule.step()
        if log and (step + 1) % 250 == 0:
            log(f"head {number} step {step + 1} loss {float(loss.detach()):.3f} ladder {float(ladder.detach()):.3f}")


@torch.no_grad()
def predict(judge: Judge, cache: Cache, rows: np.ndarray, head: RewardHead | None = None) -> np.ndarray:
    """Rewards of whole tracks (mean embedding of their clean windows, empty prompt), [len(rows)].

    Args:
        head: one with the estimate inside, in place of the judge's own.
    """
    audio, silent = judge.embed(cache.tracks[rows]).mean(1), judge.silent(len(rows))
    if head is not None:
        return head(torch.cat([audio, judge.match(audio, silent)], dim=-1)).numpy()
    return judge.reward(audio, silent).numpy()
