"""`tunejury compare`: which of two clips a listener would prefer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tunejury.command_options import load_judge, to_json
from tunejury.errors import InputError


@dataclass(frozen=True)
class Compare:
    """Print the rewards of two clips, their margin, and the probability that a listener prefers A."""

    a: Positional[Path]
    """Audio file A."""
    b: Positional[Path]
    """Audio file B."""
    prompt: str = ""
    """What the music was asked to be; left out, the audio is judged by itself."""
    reward: str = "compact"
    """The judge: a known name, a directory made by save_pretrained, a released head (.pt), or a hub id."""
    device: str = "auto"
    """cpu, cuda, cuda:N; auto takes a GPU if there is one."""
    protocol: str | None = None
    """What the judge hears of a clip; left out, what it was made for."""
    files: tuple[str, ...] = ()
    """Parts of a released head that lie here, as part=path: head, clap, roberta, mert, muq, muq-base, xlm-roberta."""
    calibration: Path | None = None
    """File of a calibration, as `tunejury calibrate` writes it: the probability then goes by what voters said of the
    two systems.
    """
    system_a: str | None = None
    """What made A; needed with --calibration."""
    system_b: str | None = None
    """What made B; needed with --calibration."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        """Judge both; a difference of two rewards is a log-odds of preference."""
        from tunejury.scoring import score_files

        probability = self._probability()
        model = load_judge(self.reward, self.device, self.protocol, self.files)
        first, second = score_files(model, [self.a, self.b], [self.prompt] * 2)
        margin = first - second
        probability_a = probability(margin, model.config.name)
        result = {
            "a": str(self.a),
            "b": str(self.b),
            "prompt": self.prompt,
            "reward_a": first,
            "reward_b": second,
            "margin": margin,
            "probability_a": probability_a,
            "protocol": model.protocol,
        }
        if self.calibration is not None:
            result |= {"calibration": str(self.calibration), "system_a": self.system_a, "system_b": self.system_b}
        if self.json:
            sys.stdout.write(to_json(result))
        else:
            sys.stdout.write(
                f"{first:+.4f}\tA {self.a}\n{second:+.4f}\tB {self.b}\n"
                f"margin {margin:+.4f}: A wins with probability {probability_a:.3f}\n"
            )

    def _probability(self) -> Callable[[float, str], float]:
        """(margin, the judge's name) -> probability that a listener prefers A; mistakes show before the judge loads."""
        if (self.calibration is None) != (self.system_a is None) or (self.system_a is None) != (self.system_b is None):
            raise InputError("expected --calibration, --system-a and --system-b together, or none of them")
        if self.calibration is None or self.system_a is None or self.system_b is None:
            return lambda margin, reward: logistic(margin)
        from tunejury.calibration import AnchorCalibration

        calibration, a, b = AnchorCalibration.load(self.calibration), self.system_a, self.system_b

        def calibrated(margin: float, reward: str) -> float:
            calibration.check_reward(reward)
            return calibration.win_probability(margin, a, b)

        return calibrated


def logistic(margin: float) -> float:
    """1 / (1 + exp(-margin)), without overflow."""
    if margin >= 0:
        return 1.0 / (1.0 + math.exp(-margin))
    return math.exp(margin) / (1.0 + math.exp(margin))
