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
import math
import os
import queue
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import soundfile
import torch
import tyro
from machine import describe_machine
from mutations import changed_json, damaged, poisoned
from random_judge import MERGES, clip, released_config, vocabulary

from tunejury import InputError, RewardModel, load_reward, save_audio
from tunejury.encoders.mert import SHAPE
from tunejury.scoring import score_files

PROMPT = "calm piano"
FORMATS = {
    "wav": ("PCM_16", "PCM_24", "FLOAT"),
    "flac": ("PCM_16", "PCM_24"),
    "ogg": ("VORBIS", "OPUS"),
    "mp3": (None,),
}
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect")
RAN_CODE = 3  # exit code
MOST_MEMORY = 2 << 30  # bytes that a single damaged file may take
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
    worker: bool = False
    """For the process this one starts."""


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


def write_judges(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A small judge of the released build, as `save_pretrained` writes it and as its parts are published."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = RewardModel(released_config("tiny"))
    judge.save_pretrained(folder / "saved")
    parts = {"head": folder / "head.pt", "clap": folder / "clap.pt"}
    parts |= {name: folder / name for name in ("mert", "roberta")}
    states: dict[str, dict[str, torch.Tensor]] = {"clap": {}, "mert": {}}
    for name, encoder in judge.encoders.items():
        target = states["mert" if name == "mert" else "clap"]
        target |= {key.removeprefix("model."): tensor for key, tensor in encoder.state_dict().items()}
    torch.save(judge.head.state_dict(), parts["head"])
    sidecar = {"input_dim": judge.config.input_dim, "exclude": []}
    parts["head"].with_suffix(".json").write_text(json.dumps(sidecar))
    torch.save({"epoch": 15, "state_dict": states["clap"]}, parts["clap"])
    for name in ("mert", "roberta"):
        parts[name].mkdir()
    mert = judge.config.encoders["mert"]
    (parts["mert"] / "config.json").write_text(json.dumps({field: mert[field] for field in SHAPE}))
    (parts["mert"] / "preprocessor_config.json").write_text('{"do_normalize": true}')
    torch.save(states["mert"], parts["mert"] / "pytorch_model.bin")
    (parts["roberta"] / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary())}))
    (parts["roberta"] / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return folder / "saved", parts


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
    saved, parts = write_judges(base)
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


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook."""
    if event.startswith(FORBIDDEN):
        os._exit(RAN_CODE)


def work() -> None:
    """Judge what standard input asks for, a line of JSON each."""
    judge = load_reward("compact", device="cpu")  # and with it all that is imported late
    load_reward(write_judges(Path(tempfile.mkdtemp()))[0], device="cpu")
    sys.addaudithook(watch)
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        case = json.loads(line)
        try:
            result = judge_case(case, judge)
        except (InputError, OSError) as error:
            result = {"outcome": "error", "detail": str(error)}
        except Exception as error:
            result = {"outcome": "traceback", "detail": f"{type(error).__name__}: {error}"}
        if result["outcome"] == "error" and "\n" in result["detail"]:
            result["outcome"] = "error of several lines"
        result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


def judge_case(case: dict[str, Any], compact: RewardModel) -> dict[str, Any]:
    """Its outcome; errors as for `load_reward` and `score_files`."""
    if "reward" in case:
        judge = load_reward(case["reward"], device="cpu", files=case.get("files"))
    else:
        judge = compact
    reward = score_files(judge, [case["clip"]], [PROMPT])[0]
    samples, rate = soundfile.read(case["clip"], dtype="float32", always_2d=True)
    with torch.no_grad():
        again = float(judge(torch.from_numpy(samples.T.copy())[None], rate, [PROMPT]))
    right = math.isfinite(reward) and abs(reward - again) <= 1e-4 * max(1.0, abs(reward))
    return {"outcome": "score" if right else "wrong score", "detail": f"{reward} beside {again}"}


class Worker:
    """A process that judges, and is started anew when it dies."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--worker"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if self.lines.get() is None:
            raise SystemExit("the worker could not start")
        self.peak = 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def judge(self, case: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What came of a case."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return {"outcome": "hang", "detail": f"over {seconds:g} s"}
        if line is None:
            code = self.process.wait()
            return {"outcome": "ran code" if code == RAN_CODE else "crash", "detail": f"exit code {code}"}
        result: dict[str, Any] = json.loads(line)
        grown, self.peak = result["peak"] - self.peak, result["peak"]
        if grown > MOST_MEMORY < result["peak"]:
            result |= {"outcome": "memory", "detail": f"{result['peak'] / 2**30:.1f} GiB; {result['detail']}"}
        return result

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


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
    if config.worker:
        work()
        return
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
