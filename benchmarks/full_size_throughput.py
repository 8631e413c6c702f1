"""The released judge at full size, random weights: the reference's way of scoring a clip beside ours.

python benchmarks/full_size_throughput.py --mert-code MERT/scripts/mert_hf --output full_size.json

The reference's way, rebuilt from its description: one clip at a time, the file decoded once for each encoder,
laion_clap's own model and preprocessing, the published MERT modelling code with all hidden states kept, the prompt
embedded for every clip. Ours: `score_files`, on the same files, from the same weights in the form they are published.
Both resample with the same resampler. Each is a process of its own, so that the peak of memory is its own; both are
loaded and warm before the first of several rounds, in which they take turns, so that what else the machine does
disturbs them alike. On a GPU ours runs in float32 and, at batch 32, in bfloat16. `encoder_parity.py` says what to
install; 10 GB of memory are needed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from machine import describe_machine
from originals import laion_clap_model, mert_model
from random_judge import clip, spread_rewards

from tunejury import convert_audio, load_audio, load_reward, save_audio
from tunejury.encoders.mert import SHAPE, MertConfig
from tunejury.head import RewardHead
from tunejury.scoring import score_files

PROMPTS = ("a calm piano piece", "fast drums, 174 bpm", "a piano and drums")
PARTS = {
    "head": "tunejury.pt", "clap": "music_audioset_epoch_15_esc_90.14.pt", "roberta": "roberta-base", "mert": "mert",
}  # fmt: skip
CALIBRATION_CLIPS = 8
SMALL_MERT = MertConfig(
    name="mert-256", hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
    conv_dim=(128,) * 7,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What to measure."""

    mert_code: Path
    """Folder with the published modeling_MERT.py and configuration_MERT.py."""
    num_clips: int | None = None
    """Of a round; left out, 8 on a CPU and 128 on a GPU."""
    rounds: int = 4
    duration: float = 10.0
    sample_rate: int = 44_100
    batch_size: int | None = None
    """Of ours; left out, 4 on a CPU and 32 on a GPU."""
    device: str = "auto"
    output: Path | None = None
    quick: bool = False
    """Small encoders and 2 rounds of 6 clips of 3 s, on the CPU."""
    part: Literal["all", "prepare", "reference", "ours"] = "all"
    """For the processes this one starts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    folder: Path | None = None


def clips_in(config: Config) -> int:
    """Clips of a round."""
    return config.num_clips or (128 if config.device.startswith("cuda") else 8)


def prepare(config: Config, folder: Path) -> None:
    """Clips, and the judge's parts as they are published."""
    torch.manual_seed(0)
    os.chdir(folder)
    original = laion_clap_model(not config.quick)
    state = {f"module.{name}": tensor for name, tensor in original.model.state_dict().items()}
    torch.save({"epoch": 15, "state_dict": state}, "music_audioset_epoch_15_esc_90.14.pt")
    shape = SMALL_MERT if config.quick else MertConfig()
    mert = mert_model(config.mert_code, shape)
    Path("mert").mkdir()
    torch.save(mert.state_dict(), "mert/pytorch_model.bin")
    Path("mert/config.json").write_text(json.dumps({field: getattr(shape, field) for field in SHAPE}))
    Path("mert/preprocessor_config.json").write_text('{"do_normalize": true}')
    Path("clips").mkdir()
    count = clips_in(config)
    for i in range(count):
        save_audio(Path("clips") / f"{i:04}.wav", clip(config.duration, config.sample_rate), config.sample_rate)
    head = RewardHead(512 + shape.hidden_size + 512)
    torch.save(head.state_dict(), "tunejury.pt")
    save_spread_head(head, *clips_of(folder, min(count, CALIBRATION_CLIPS)))


def save_spread_head(head: RewardHead, files: list[Path], prompts: list[str]) -> None:
    """Fit the head to a few clips, so that an error is one that a user would see (see `spread_rewards`)."""
    judge = load_reward("tunejury", device="cpu", files=PARTS)
    features = []
    with torch.no_grad():
        for file, prompt in zip(files, prompts, strict=True):
            wav, rate = load_audio(file)
            features.append(judge.features(judge.encode_audio(wav[None], rate), judge.encode_prompts([prompt])))
    spread_rewards(head, torch.cat(features))
    torch.save(head.state_dict(), PARTS["head"])


def clips_of(folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """The first files and their prompts."""
    files = sorted((folder / "clips").iterdir())[:count]
    return files, [PROMPTS[i % len(PROMPTS)] for i in range(count)]


def run_reference(config: Config, folder: Path) -> None:
    """Clip by clip, as the reference's scorer does it."""
    device = torch.device(config.device)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        clap = laion_clap_model(not config.quick)
        os.chdir(folder)
    weights = torch.load("music_audioset_epoch_15_esc_90.14.pt", weights_only=True)["state_dict"]
    clap.model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in weights.items()})
    clap = clap.to(device).eval()
    shape = SMALL_MERT if config.quick else MertConfig()
    mert = mert_model(config.mert_code, shape)
    mert.load_state_dict(torch.load("mert/pytorch_model.bin", weights_only=True))
    mert = mert.to(device)
    head = RewardHead.from_state_dict(torch.load("tunejury.pt", weights_only=True)).eval().to(device)
    del weights

    def score(file: Path, prompt: str) -> float:
        wav, rate = load_audio(file)
        wav = convert_audio(wav, rate, 48_000, 1)
        audio = torch.as_tensor(clap.get_audio_embedding_from_data(wav.numpy(), use_tensor=False))
        text = torch.as_tensor(clap.get_text_embedding([prompt], use_tensor=False))
        wav, rate = load_audio(file)  # again, for the other encoder
        wav = convert_audio(wav, rate, 24_000, 1)
        wav = (wav - wav.mean()) / (wav.var(correction=0) + 1e-7).sqrt()
        states = mert(wav.to(device), output_hidden_states=True).last_hidden_state
        features = torch.cat([audio, states.mean(1).float().cpu(), text], dim=1)
        return float(head(features.to(device)))

    take_turns(config, folder, lambda files, prompts: [score(f, p) for f, p in zip(files, prompts, strict=True)])


def run_ours(config: Config, folder: Path) -> None:
    """In batches, the next one decoded meanwhile."""
    os.chdir(folder)
    judge = load_reward("tunejury", device=config.device, dtype=getattr(torch, config.dtype), files=PARTS)
    batch_size = config.batch_size or (32 if judge.device.type == "cuda" else 4)
    take_turns(config, folder, lambda files, prompts: score_files(judge, files, prompts, batch_size=batch_size))


def take_turns(config: Config, folder: Path, score: Any) -> None:
    """Warm up, then a round for every line on standard input. Says seconds by the clock and of the processor (which
    other programs disturb less), rewards and the peak of memory so far.
    """
    files, prompts = clips_of(folder, clips_in(config))
    cuda = config.device.startswith("cuda")
    warm_up = min(len(files), config.batch_size or (32 if cuda else 4))
    with torch.inference_mode():
        score(files[:warm_up], prompts[:warm_up])
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        say(ready=True)
        for _ in sys.stdin:
            started, computed = time.perf_counter(), time.process_time()
            rewards = score(files, prompts)
            seconds, computed = time.perf_counter() - started, time.process_time() - computed
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            peak = torch.cuda.max_memory_allocated() if cuda else peak
            say(seconds=seconds, cpu_seconds=computed, rewards=rewards, peak_bytes=peak)


def say(**result: Any) -> None:
    """One line for the process that waits."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def start_part(config: Config, folder: Path, part: str, dtype: str = "float32") -> subprocess.Popen[str]:
    """Another process, at work."""
    command = [
        sys.executable, __file__, "--part", part, "--folder", str(folder), "--dtype", dtype, "--device", config.device,
        "--mert-code", str(config.mert_code.resolve()), "--num-clips", str(clips_in(config)),
        "--duration", str(config.duration), "--sample-rate", str(config.sample_rate),
    ]  # fmt: skip
    command += ["--batch-size", str(config.batch_size)] if config.batch_size else []
    command += ["--quick"] if config.quick else []
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(path: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says next; laion_clap prints lines of its own."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            result: dict[str, Any] = json.loads(line)
            return result
    raise SystemExit(f"{path} failed")


def measure(config: Config, folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by path, each with its rounds."""
    if start_part(config, folder, "prepare").wait():
        raise SystemExit("the judge's parts could not be made")
    paths = {"reference": start_part(config, folder, "reference"), "ours": start_part(config, folder, "ours")}
    if config.device.startswith("cuda"):
        paths["ours, bfloat16"] = start_part(config, folder, "ours", "bfloat16")
    try:
        for path, process in paths.items():
            answer(path, process)
        rounds: dict[str, list[dict[str, Any]]] = {path: [] for path in paths}
        for turn in range(config.rounds):
            for path in list(paths) if turn % 2 == 0 else list(reversed(paths)):
                stdin = paths[path].stdin
                assert stdin is not None
                stdin.write("\n")
                stdin.flush()
                rounds[path].append(answer(path, paths[path]))
    finally:
        for process in paths.values():
            process.kill()
    return {
        path: {
            **{field: sum(turn[field] for turn in turns) for field in ("seconds", "cpu_seconds")},
            "rewards": turns[0]["rewards"],
            "peak_bytes": turns[-1]["peak_bytes"],
            "speed_ups": [r["seconds"] / t["seconds"] for r, t in zip(rounds["reference"], turns, strict=True)],
        }
        for path, turns in rounds.items()
    }


def main(config: Config) -> None:
    if config.device == "auto":
        config = replace(config, device="cuda" if torch.cuda.is_available() and not config.quick else "cpu")
    if config.part != "all":
        assert config.folder is not None
        {"prepare": prepare, "reference": run_reference, "ours": run_ours}[config.part](config, config.folder)
        return
    if config.quick:
        config = replace(config, num_clips=6, rounds=2, duration=3.0)
    with tempfile.TemporaryDirectory() as name:
        rows = measure(config, Path(name))
    reference, clips = rows["reference"], clips_in(config) * config.rounds
    machine, size = describe_machine(), "reduced size" if config.quick else "full size"
    load = os.getloadavg()
    print(
        f"{size}, {config.rounds} rounds of {clips_in(config)} clips of {config.duration:g} s at {config.sample_rate} "
        f"Hz, on {machine}; load {load[0]:.1f} in the last minute, {load[2]:.1f} in the last 15"
    )
    print(
        "| path | clips/s | times the reference | by round | processor seconds per clip | peak (GiB) | reward error |"
    )
    print("|---|---|---|---|---|---|---|")
    for path, row in rows.items():
        row["speed_up"] = reference["seconds"] / row["seconds"]
        row["error"] = max(abs(a - b) for a, b in zip(row["rewards"], reference["rewards"], strict=True))
        print(
            f"| {path} | {clips / row['seconds']:.3f} | {row['speed_up']:.2f} | "
            f"{min(row['speed_ups']):.2f} to {max(row['speed_ups']):.2f} | {row['cpu_seconds'] / clips:.2f} | "
            f"{row['peak_bytes'] / 2**30:.2f} | {row['error']:.1e} |"
        )
    spread = torch.tensor(reference["rewards"]).std()
    print(f"reward error: the largest; standard deviation of the reference's rewards: {spread:.2f}")
    if config.output:
        kept = {**asdict(config), "mert_code": None, "output": None, "folder": None}
        result = {"machine": machine, "load": load, "config": kept, "rows": rows}
        config.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
