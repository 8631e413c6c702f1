"""One clip's way through an optimisation: its iterates' rewards, the best of them, and when to stop."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# a gradient so many times longer than the clip's usual one has exploded: the next would be NaN or noise
EXPLODED = 1_000.0


@dataclass
class Trajectory:
    """Owned by one clip alone, so that it cannot depend on the batch.

    Args:
        best: latents [D, L] to fall back to; at first the initial ones.
        patience: iterates without a new high of the held-out judge before the clip stops; None: it never does.
    """

    best: Tensor
    patience: int | None = None
    rewards: list[float] = field(default_factory=list)
    """Of every iterate, the initial latents first."""
    held_out: list[float] = field(default_factory=list)
    best_step: int = 0
    stopped: str | None = None
    """Why it ended early, though nothing was wrong."""
    problem: str | None = None
    """What went wrong; the best iterate until then counts."""
    gradient_norms: list[float] = field(default_factory=list)

    @property
    def going(self) -> bool:
        return self.stopped is None and self.problem is None

    def visit(self, latents: Tensor, reward: float, held_out: float | None) -> None:
        """Note what the judges say of an iterate [D, L], and keep it if it is the best.

        The best is the one that the held-out judge likes most among those whose reward is above the first's; without a
        held-out judge, the one with the highest reward. The initial latents are best while no iterate rises above.
        """
        step = len(self.rewards)
        if not math.isfinite(reward) or (held_out is not None and not math.isfinite(held_out)):
            self.problem = f"step {step}: the reward is {reward}" + (
                "" if held_out is None else f", the held-out one {held_out}"
            )
            return
        self.rewards.append(reward)
        if held_out is not None:
            self.held_out.append(held_out)
        values = self.rewards if held_out is None else self.held_out
        if reward > self.rewards[0] and (self.best_step == 0 or values[step] > values[self.best_step]):
            self.best, self.best_step = latents.detach().clone(), step
        self._watch(step)

    def _watch(self, step: int) -> None:
        """Stop where the held-out judge has turned down while the reward goes on rising."""
        if self.patience is None or not self.held_out:
            return
        peak = max(range(step + 1), key=self.held_out.__getitem__)
        if step - peak >= self.patience and self.rewards[step] > self.rewards[peak]:
            self.stopped = f"step {step}: the held-out reward has fallen since step {peak} while the reward rose"

    def check_gradient(self, norm: float) -> None:
        """Note the length of the gradient at the last iterate; NaN, infinity or an explosion ends the clip."""
        step = len(self.rewards) - 1
        if not math.isfinite(norm):
            self.problem = f"step {step}: the gradient is not finite"
            return
        usual = statistics.median(self.gradient_norms) if self.gradient_norms else norm
        if norm > EXPLODED * usual > 0:
            self.problem = f"step {step}: the gradient exploded, to {norm:.3g} from {usual:.3g}"
            return
        self.gradient_norms.append(norm)
