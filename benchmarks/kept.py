"""Where a benchmark keeps what it has measured so far, so that the same command goes on after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# what a figure depends on besides its settings: a measurement with other code or weights is another measurement
MEASURED = ("alignment", "tunejury", "recipes/prompts", "benchmarks/prompts")
SUFFIXES = (".py", ".safetensors", ".json", ".jsonl", ".txt")
# flags that change where figures go, not what they are
PLACES = ("output", "output_dir", "overwrite", "plot", "work_dir")


def work_folder(name: str, config: Any, work_dir: Path | None) -> Path:
    """The folder of a benchmark's runs: `work_dir`, or runs/benchmarks/<name>-<digest of settings, code and weights>.

    Args:
        name: of the benchmark.
        config: a dataclass of its settings.
    """
    if work_dir is None:
        assert is_dataclass(config) and not isinstance(config, type)
        settings = {key: value for key, value in asdict(config).items() if key not in PLACES}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for folder in [*(ROOT / room for room in MEASURED), *_directories(settings.values())]:
            for file in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
                digest.update(file.relative_to(folder.parent).as_posix().encode() + file.read_bytes())
        work_dir = Path("runs") / "benchmarks" / f"{name}-{digest.hexdigest()[:10]}"
    work_dir.mkdir(parents=True, exist_ok=True)
    print(f"kept in {work_dir}; the same command goes on")
    return work_dir


def _directories(values: Iterable[Any]) -> list[Path]:
    """Those of the settings, alone or in tuples, that name a directory: a model that is trained on is another one."""
    named = [value for each in values for value in (each if isinstance(each, tuple) else [each])]
    return [Path(value) for value in named if isinstance(value, str) and value and Path(value).is_dir()]


def once(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is in a JSON file, or what `measure` finds, which is then written there."""
    if not file.exists():
        found = json.dumps(measure(), indent=1)
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(found)
        temporary.replace(file)
    record: dict[str, Any] = json.loads(file.read_text())
    return record
