"""Damaged audio files and checkpoints: each is one error line or a right score; none crashes, hangs or runs code.

python benchmarks/fuzz_inputs.py --output fuzz.json

500 wav, flac, ogg and mp3 files with damage, most of it to their headers, and 200 damaged parts of judges: weights in
`.pt`, `.bin` and safetensors, configs, descriptions and tokenisers, byte by byte and value by value, and pickles with
calls in them. A worker judges one after the other; the process beside it watches its time, its memory and its death.
A score of a clip is right if it is that of the samples the decoder's simplest call gives; one of a judge, if it is
finite and the same twice. `--seed` makes other damage, `--folder` keeps the files.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import soundfile
import torch
import tyro
from fuzz_worker import Worker
from machine import describe_machine
from mutations import changed_json, damaged, poisoned
from random_judge import clip, write_random_release

from tunejury import save_audio

FORMATS = {
    "wav": ("PCM_16", "PCM_24", "FLOAT"),
    "flac": ("PCM_16", "PCM_24"),
    "ogg": ("VORBIS", "OPUS"),
    "mp3": (None,),
}
GOOD = ("score", "error")


@dataclass(frozen=True)
class Config:
    """How much damage."""

    num_clips: int = 500
    num_checkpoints: int = 200
    seed: int = 0
    only: str = ""
    """Damage only what has this in its name, such as `config.json`."""
    seconds_per_file: float = 60.0
    """After which a file is said to hang; the largest takes a second of an idle machine."""
    folder: Path | None = None
    """Where the damaged files go and stay; left out, a temporary folder."""
    output: Path | None = None
    quick: bool = False
    """40 clips and 24 checkpoints."""


def make_clips(config: Config, folder: Path, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Cases of damaged audio, and one of each format that is whole."""
    wav = (clip(0.2, 16_000) * 0.9).T.numpy()
    whole = []
    for suffix, subtypes in FORMATS.items():
        for subtype in subtypes:
            path = folder / f"whole-{subtype or suffix}.{suffix}".lower()
            rate = 48_000 if subtype == "OPUS" else 16_000
            soundfile.write(path, wav, rate, subtype=subtype)
            whole.append(path)
            yield {"group": suffix, "case": path.name, "clip": str(path), "whole": True}
    whole = [path for path in whole if config.only in path.name]
    for i in range(config.num_clips if whole else 0):
        source = whole[i % len(whole)]
        path = folder / f"{i:04}{source.suffix}"
        path.write_bytes(damaged(source.read_bytes(), chance, 0.7))
        yield {"group": source.suffix[1:], "case": path.name, "clip": str(path)}


# what is damaged: files of a saved judge, of the shipped one, and of a released one by the part they belong to
DAMAGED = (
    ("saved", "config.json"), ("saved", "model.safetensors"), ("compact", "config.json"),
    ("compact", "model.safetensors"), ("head", "head.pt"), ("head", "head.json"), ("head", "poison"),
    ("clap", "clap.pt"), ("clap", "poison"), ("mert", "config.json"), ("mert", "preprocessor_config.json"),
    ("mert", "pytorch_model.bin"), ("mert", "poison"), ("roberta", "vocab.json"), ("roberta", "merges.txt"),
)  # fmt: skip


def make_checkpoints(config: Config, folder: Path, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Cases of damaged judges, and three that are whole."""
    import tunejury

    base = folder / "whole"
    base.mkdir()
    saved, parts = write_random_release(base)
    sources = {"saved": saved, "compact": Path(tunejury.__file__).parent / "weights" / "compact"}
    clip_file, marker = str(base / "clip.wav"), str(folder / "MARKER")
    save_audio(Path(clip_file), clip(0.3, 16_000), 16_000)
    same = {"clip": clip_file, "group": "whole judges", "whole": True}
    for name, source in sources.items():
        yield {**same, "case": name, "reward": str(source)}
    files = {name: str(path) for name, path in parts.items() if name != "head"}
    yield {**same, "case": "released", "reward": str(parts["head"]), "files": files}
    chosen = [pair for pair in DAMAGED if config.only in ": ".join(pair)]
    for i in range(config.num_checkpoints if chosen else 0):
        part, name = chosen[i % len(chosen)]
        target = folder / f"{i:04}-{part}-{name.split('.')[0]}"
        source = sources.get(part) or parts[part]
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.mkdir()
            for file in source.parent.glob(f"{source.stem}.*"):
                shutil.copy(file, target)
        file = target / name
        if name == "poison":
            file = target / {"mert": "pytorch_model.bin"}.get(part, f"{part}.pt")
            state = torch.load(file, weights_only=True)
            file.write_bytes(poisoned(state.get("state_dict", state), marker, chance))
        elif name.endswith(".json") and chance.random() < 0.7:
            file.write_bytes(changed_json(file.read_bytes(), chance))
        else:
            file.write_bytes(damaged(file.read_bytes(), chance, 0.1))
        case = {"group": f"{part}: {name}", "case": target.name, "clip": clip_file}
        changed = str(target / source.name) if source.is_file() else str(target)
        if part in sources:
            yield {**case, "reward": changed}
        elif part == "head":
            yield {**case, "reward": changed, "files": files}
        else:
            yield {**case, "reward": str(parts["head"]), "files": {**files, part: changed}}


def run_cases(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Every case with its outcome."""
    chance = random.Random(config.seed)
    for name in ("clips", "checkpoints"):
        (folder / name).mkdir(parents=True)
    cases = [
        *make_clips(config, folder / "clips", chance), *make_checkpoints(config, folder / "checkpoints", chance)
    ]  # fmt: skip
    worker = Worker()
    try:
        for case in cases:
            case |= worker.judge(case, config.seconds_per_file)
            if (folder / "checkpoints" / "MARKER").exists():
                (folder / "checkpoints" / "MARKER").unlink()
                case |= {"outcome": "ran code", "detail": "its file is there"}
            if case.get("whole") and case["outcome"] != "score":
                case["outcome"] = f"whole, but: {case['outcome']}"
            if case["outcome"] in ("hang", "crash", "ran code"):
                worker.stop()
                worker = Worker()
    finally:
        worker.stop()
    return cases


def main(config: Config) -> None:
    if config.quick:
        config = replace(config, num_clips=40, num_checkpoints=24)
    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as temporary:
        cases = run_cases(config, config.folder or Path(temporary))
    machine = describe_machine()
    print(f"seed {config.seed}, on {machine}")
    print("| damaged | files | scores | error lines | neither |")
    print("|---|---|---|---|---|")
    rows = []
    for group in dict.fromkeys(case["group"] for case in cases):
        found = Counter(case["outcome"] for case in cases if case["group"] == group)
        row = {"group": group, "files": found.total(), "scores": found["score"], "errors": found["error"]}
        row["neither"] = row["files"] - row["scores"] - row["errors"]
        rows.append(row)
        print(f"| {' | '.join(map(str, row.values()))} |")
    bad = [case for case in cases if case["outcome"] not in GOOD]
    for case in bad:
        print(f"{case['case']}: {case['outcome']}: {case['detail'][:300]}")
    if config.output:
        kept = {**asdict(config), "output": None, "folder": None}
        results = [{key: case[key] for key in ("group", "case", "outcome", "detail")} for case in cases]
        result = {"machine": machine, "config": kept, "rows": rows, "cases": results}
        config.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(cases)} files, {len(bad)} of them neither an error line nor a right score")
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
