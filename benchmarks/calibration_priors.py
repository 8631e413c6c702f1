"""What the calibration's prior is worth: other priors on the published splits, and one chosen without the test votes.

python benchmarks/calibration_priors.py --data-dir ../shared/data --output priors.json

The constants of the default prior were settled with the comparison of `benchmarks/published.py` in view. The first
table puts others in their place. The second chooses among a grid of priors for every split anew, by log loss in splits
within its 299 training battles, and tests the choice on the other 299: that gain owes nothing to hindsight, but for the
grid.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from machine import describe_machine
from published import NUM_ANCHORS, SPLIT, Config, measure, published_method, read_battles, splits

from tunejury.calibration import AnchorCalibration
from tunejury.calibration_fit import AnchorPrior, fit_anchors
from tunejury.preferences import PreferencePair

Votes = Sequence[PreferencePair]
Method = Callable[[list[PreferencePair]], AnchorCalibration]

# other numbers than the default's: nothing said of the spread of offsets; what the 201 votes outside of the table say
# (their marginal likelihood is highest at a scale of 0 to 0.25, a spread of 0.5 to 0.7 and 0.75 between); no shrinkage
# by the mean reward, and neighbours
PRIORS: Mapping[str, AnchorPrior] = {
    "default": AnchorPrior(),
    "flat spread": AnchorPrior(spread_log_deviation=math.inf),
    "flat spread, wide scale, nothing between": AnchorPrior(0.5, 0.5, 0.0, 0.5, math.inf),
    "from the 201 other votes": AnchorPrior(0.25, 0.3, 0.75, 0.6, 0.5),
    "nothing between": AnchorPrior(between_deviation=0.0),
    "spread 0.7 (the published l2)": AnchorPrior(spread_median=0.5**0.5),
    "scale around 1": AnchorPrior(scale_mean=1.0),
}
GRID = tuple(
    AnchorPrior(scale_mean=scale, between_deviation=between, spread_median=spread)
    for scale, between, spread in product((0.25, 0.5, 1.0), (0.0, 0.5), (0.25, 0.5, 1.0))
)
INNER_SPLITS = 4
INNER_ANCHORS = (3, 10, 30, 100)  # of half the training battles; the other half is tested on


@dataclass(frozen=True)
class Arguments:
    """What to compare."""

    data_dir: Path = Config.data_dir
    seeds: int = 100
    """Splits of the first table."""
    nested_seeds: int = 30
    """Splits of the second."""
    output: Path | None = None
    quick: bool = False
    """5 splits, 2 of the second."""


def with_prior(prior: AnchorPrior) -> Method:
    # no interval is asked for
    return lambda train: fit_anchors(train, allow_disconnected=True, prior=prior, interval_prior=prior)


def compare_priors(votes: dict[str, PreferencePair], ids: Sequence[str], num_seeds: int) -> dict[str, Any]:
    """The default method under other priors, by K."""
    table: dict[str, list[Cell]] = {name: [] for name in PRIORS}
    for count in NUM_ANCHORS:
        chosen = list(splits(votes, ids, count, num_seeds))
        base = [measure(published_method(train), test) for train, test in chosen]
        for name, prior in PRIORS.items():
            table[name].append(cell([measure(with_prior(prior)(train), test) for train, test in chosen], base))
    return table


def choose_prior(pool: Votes) -> AnchorPrior:
    """The prior of the grid with the least log loss, over numbers of anchors and halves of the pool."""
    losses = dict.fromkeys(range(len(GRID)), 0.0)
    for inner in range(INNER_SPLITS):
        shuffled = list(pool)
        random.Random(1000 + inner).shuffle(shuffled)
        for count, (place, prior) in product(INNER_ANCHORS, enumerate(GRID)):
            calibration = with_prior(prior)(shuffled[:count])
            losses[place] += measure(calibration, shuffled[len(pool) // 2 :])["log_loss"]
    return GRID[min(losses, key=lambda place: losses[place])]


def nested(votes: dict[str, PreferencePair], ids: Sequence[str], num_seeds: int) -> dict[str, Any]:
    """Priors chosen inside the training battles, and the default one on the same splits, by K."""
    pools = [train for train, _ in splits(votes, ids, SPLIT, num_seeds)]
    methods = {
        "chosen on the training half": [with_prior(choose_prior(pool)) for pool in pools],
        "default": [with_prior(AnchorPrior())] * num_seeds,
    }
    table: dict[str, list[Cell]] = {name: [] for name in methods}
    for count in NUM_ANCHORS:
        chosen = list(splits(votes, ids, count, num_seeds))
        base = [measure(published_method(train), test) for train, test in chosen]
        for name, fits in methods.items():
            rows = [measure(fit(train), test) for fit, (train, test) in zip(fits, chosen, strict=True)]
            table[name].append(cell(rows, base))
    return table


Cell = Mapping[str, float]


def cell(rows: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> Cell:
    """Gain in accuracy over the published method in points with its standard error, and log loss."""
    gains = [100 * (row["accuracy"] - other["accuracy"]) for row, other in zip(rows, base, strict=True)]
    return {
        "gain": float(np.mean(gains)),
        "standard_error": float(np.std(gains) / len(gains) ** 0.5),
        "log_loss": float(np.mean([row["log_loss"] for row in rows])),
    }


def show(title: str, table: Mapping[str, Sequence[Cell]]) -> None:
    print(f"\n| {title} | " + " | ".join(f"K = {count}" for count in NUM_ANCHORS) + " |\n" + "|---" * 7 + "|")
    for name, cells in table.items():
        figures = [f"{c['gain']:+.2f} ± {c['standard_error']:.2f}, {c['log_loss']:.4f}" for c in cells]
        print(f"| {name} | {' | '.join(figures)} |", flush=True)


def main(arguments: Arguments) -> None:
    logging.basicConfig(level=logging.ERROR)  # unseen and one-sided systems are expected at small K
    machine = describe_machine()
    print(f"on {machine}; gain in accuracy over the published method in points, log loss")
    try:
        votes, ids = read_battles(arguments.data_dir)
    except FileNotFoundError as error:
        print(f"skipped, {error.filename} is absent")
        return
    priors = compare_priors(votes, ids, 5 if arguments.quick else arguments.seeds)
    show("prior", priors)
    chosen = nested(votes, ids, 2 if arguments.quick else arguments.nested_seeds)
    show("prior", chosen)
    if arguments.output is not None:
        text = json.dumps({"machine": machine, "priors": priors, "nested": chosen}, indent=1)
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
