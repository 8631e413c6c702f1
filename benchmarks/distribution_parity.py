"""Distribution metrics against the reference programs' own code, and against known answers, on hard sets.

python benchmarks/distribution_parity.py --reference-path DIR --output parity.json

For each set: the Frechet distance against fadtk's function and against scipy's matrix square root in float64, the
kernel distance against kadtk's function (in float64), MAD against mauve-text; and the expected calibration error
against scikit-learn's bins. The references are optional and none of them is imported here: an interpreter of its own
takes the two functions out of the installed source files, without the packages around them, and runs mauve-text, which
is GPL. One way to install them beside the project:

    pip install --no-deps --target DIR mauve-text faiss-cpu scikit-learn joblib threadpoolctl cloudpickle narwhals \\
        fadtk kadtk

Where a covariance is singular the references' matrix square root may come out complex, or with an error of the order
of the root of the rounding: there ours must be real, finite and, where the distance is known, right. scipy is in the
`compact` extra.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import describe_machine
from numpy.typing import NDArray

from tunejury.distribution import frechet_distance, kernel_distance
from tunejury.mauve import MauveConfig, mauve_audio_divergence
from tunejury.metrics import expected_calibration_error

Floats = NDArray[np.float64]

# run by an interpreter that has the references; prints {name: value, or why there is none}
PROGRAM = """
import ast, json, math, sys, warnings
from pathlib import Path
import numpy as np, scipy.linalg, torch
warnings.simplefilter("ignore")
sets = np.load(sys.argv[1])
x, y = sets["p"], sets["q"]

def function(package, file, *names):
    source = next(p for p in (Path(folder) / package / file for folder in sys.path) if p.is_file()).read_text()
    kept = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {"np": np, "torch": torch, "scipy": scipy, "linalg": scipy.linalg, "Path": Path, "SCALE_FACTOR": 100,
             "scisqrt": np.lib.scimath.sqrt, "log": __import__("logging").getLogger("reference")}
    exec(compile(ast.Module(kept, []), file, "exec"), space)
    return space[names[0]]

def fadtk():
    frechet = function("fadtk", "fad.py", "calc_frechet_distance")
    return complex(frechet(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))).real

def kadtk():
    kernel = function("kadtk", "kad.py", "calc_kernel_audio_distance", "median_pairwise_distance")
    return kernel(torch.from_numpy(x), torch.from_numpy(y), (None, None), "cpu", precision=torch.float64).item()

def mauve_text():
    import mauve
    return mauve.compute_mauve(p_features=x, q_features=y, num_buckets="auto", seed=42, verbose=False).mauve

found = {}
for reference in (fadtk, kadtk, mauve_text):
    try:
        value = float(reference())
        found[reference.__name__] = value if math.isfinite(value) else repr(value)
    except (StopIteration, ImportError):
        found[reference.__name__] = None
    except Exception as error:
        found[reference.__name__] = f"{type(error).__name__}: {error}"[:60]
print("RESULT", json.dumps(found))
"""

# the same for the reliability diagram: prints accuracy and confidence by bin of equal counts
CALIBRATION_PROGRAM = """
import json, sys
import numpy as np
from sklearn.calibration import calibration_curve
sets = np.load(sys.argv[1])
print("RESULT", json.dumps([x.tolist() for x in calibration_curve(*sets.values(), n_bins=10, strategy="quantile")]))
"""


@dataclass(frozen=True)
class Config:
    """What to compare."""

    reference_path: Path | None = None
    """Folder to find mauve-text, fadtk and kadtk in, beside the installed packages."""
    output: Path | None = None
    quick: bool = False
    """Smaller sets."""


def cases(quick: bool) -> dict[str, tuple[Floats, Floats, float | None]]:
    """Sets by name: generated, reference, and the Frechet distance where it is known."""
    random = np.random.default_rng(0)
    n, dim = (120, 32) if quick else (400, 128)

    def normal(rows: int, columns: int) -> Floats:
        return random.standard_normal((rows, columns))

    x, y = normal(n, dim), 1.2 * normal(n, dim) + 0.2
    low = normal(n, 4) @ normal(4, dim), normal(n, 4) @ normal(4, dim)
    centres = 6 * normal(8, dim)
    shift = np.zeros(dim)
    shift[0] = 1e4
    half, tenth = np.arange(dim) < dim // 2, (np.arange(n) < n // 10)[:, None]
    line = np.outer(x[:, 0], np.ones(dim))
    return {
        "random": (x, y, None),
        "clusters": (
            centres[random.integers(8, size=n)] + x,
            centres[random.integers(4, size=n)] + normal(n, dim),
            None,
        ),
        "fewer than values": (x[: dim // 2], y[: dim // 2], None),
        "rank 4": (*low, None),
        "identical": (x, x.copy(), 0.0),
        "far apart": (x, x + shift, 1e8),
        "unequal sizes": (x[: n // 20], np.concatenate([y, normal(n, dim)]), None),
        "copies": (np.repeat(x[: n // 4], 4, axis=0), np.repeat(y[: n // 4], 4, axis=0), None),
        "one point": (np.ones((n, dim)), np.ones((n, dim)), 0.0),
        "far from the origin": (x + 1e6, y + 1e6, None),
        "2 rows": (x[:2], y[:2], None),
        "one value in half the columns": (np.where(half, 1.0, x), np.where(half, 1.0, y), None),
        "zeros in a tenth of the rows": (np.where(tenth, 0.0, x), np.where(tenth, 0.0, y), None),
        "one point and a cloud": (np.ones((n, dim)), x, None),
        "one line but for 1e-7": (line + 1e-7 * x, 1.3 * line + 1e-7 * y, None),
        "values of 1e-9": (1e-9 * x, 1e-9 * y, None),
        "values of 1e6": (1e6 * x, 1e6 * y, None),
    }


def scipy_frechet(x: Floats, y: Floats) -> complex:
    """The formula with a matrix square root of the product of the covariances, whatever comes out."""
    from scipy import linalg

    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(first @ second)
    means = x.mean(0) - y.mean(0)
    return complex(means @ means + np.trace(first) + np.trace(second) - 2 * np.trace(root))


def run_reference(program: str, path: Path | None, **arrays: Floats) -> Any:
    """What a program prints of some arrays, in another process; None where what it needs is not installed."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sets.npz"
        np.savez(file, **arrays)  # type: ignore[arg-type]
        command = [sys.executable, "-c", program, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines and "No module named" not in done.stderr:
        raise RuntimeError(f"the references failed: {done.stderr[-500:]}")
    return json.loads(lines[0].removeprefix("RESULT ")) if lines else None


def compare_calibration_error(path: Path | None) -> dict[str, float | None]:
    """Expected calibration error in bins of equal counts, beside that of scikit-learn's bins."""
    random = np.random.default_rng(0)
    probability = random.uniform(size=2000)
    outcome = (random.uniform(size=2000) < probability**1.3).astype(float)
    right = ((probability > 0.5) == (outcome == 1)).astype(float)
    found = run_reference(CALIBRATION_PROGRAM, path, right=right, confidence=np.maximum(probability, 1 - probability))
    theirs = None if found is None else float(np.abs(np.subtract(*found)).mean())
    return {"ours": expected_calibration_error(probability, outcome), "scikit_learn": theirs}


def compare(x: Floats, y: Floats, known: float | None, path: Path | None) -> dict[str, Any]:
    first, second = torch.from_numpy(x), torch.from_numpy(y)
    frechet, plain = frechet_distance(first, second), scipy_frechet(x, y)
    kernel = kernel_distance(first, second)
    ours = mauve_audio_divergence(first, second, MauveConfig())
    assert math.isfinite(frechet) and frechet >= 0 and math.isfinite(kernel) and math.isfinite(ours.divergence)
    return {
        "frechet": frechet,
        "frechet_scipy": plain.real,
        "frechet_scipy_imaginary": plain.imag,
        "frechet_known": known,
        "kernel": kernel,
        "mauve": ours.mauve,
        "mad": ours.divergence,
        "references": run_reference(PROGRAM, path, p=x, q=y),
    }


def main(config: Config) -> None:
    logging.basicConfig(level=logging.ERROR)  # that some sets are small is the point
    rows = {name: compare(*sets, config.reference_path) for name, sets in cases(config.quick).items()}
    print(f"distribution metrics, ours and references, on {describe_machine()}\n")
    print("| set | FAD | known | fadtk | scipy | KAD | kadtk | MAUVE | mauve-text |")
    print("|---" * 9 + "|")
    for name, row in rows.items():
        imaginary = row["frechet_scipy_imaginary"]
        scipy = f"{row['frechet_scipy']:.8g}" + (f" {imaginary:+.2g}i" if imaginary else "")
        reference = {key: show(value) for key, value in row["references"].items()}
        print(
            f"| {name} | {show(row['frechet'])} | {show(row['frechet_known'])} | {reference['fadtk']} | {scipy} "
            f"| {show(row['kernel'])} | {reference['kadtk']} | {row['mauve']:.12g} "
            f"| {show(row['references']['mauve_text'], 12)} |"
        )
    calibration = compare_calibration_error(config.reference_path)
    ours, theirs = calibration["ours"], calibration["scikit_learn"]
    print(f"\nexpected calibration error of 2000 pairs: {show(ours, 12)}, in scikit-learn's bins {show(theirs, 12)}")
    if config.output:
        report = {"machine": describe_machine(), "rows": rows, "expected_calibration_error": calibration}
        config.output.write_text(json.dumps(report, indent=1) + "\n")


def show(value: float | str | None, digits: int = 8) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.{digits}g}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
