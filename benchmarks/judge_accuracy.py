"""How well a judge agrees with the released TuneJury, hears faults, and tells a right prompt from a wrong one.

    python benchmarks/judge_accuracy.py --data-dir ../shared/data --renders DIR --composed DIR --output judge.json

Teacher tracks: `--teacher-dir` (default DATA_DIR/teacher: teacher.csv with columns midi, teacher_reward, collection),
rendered to 16 kHz mono int16 .npy files by recipes/compact/render_teacher.py in `--renders`. Composed clips: a split
folder written by recipes/compact/compose.py in `--composed`. What is absent is skipped, saying so. By default only
tracks named in judge_held_out.txt are used, which the compact judge was not trained on; `--split all` takes any set.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from degradations import DEGRADATIONS, STRENGTHS, degrade
from judge_prompts import KINDS, changed, write_prompt
from machine import describe_machine
from numpy.typing import NDArray
from tqdm import tqdm

from tunejury import RewardModel, load_reward

SAMPLE_RATE = 16_000  # Hz of the renders and clips
HELD_OUT = Path(__file__).parent / "judge_held_out.txt"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    """What to measure."""

    reward: str = "compact"
    data_dir: Path = Path("../shared/data")
    teacher_dir: Path | None = None
    """Folder of teacher.csv; default: DATA_DIR/teacher."""
    renders: Path = Path("data/compact/teacher")
    composed: Path = Path("data/compact/composed/test")
    split: Literal["held-out", "all"] = "held-out"
    num_clips: int = 300
    """Composed clips, and windows of teacher tracks, for faults and prompts."""
    output: Path | None = None
    quick: bool = False
    """A sixth of the clips, moderate faults only."""


def to_wav(pcm: NDArray[np.int16]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(pcm, dtype=np.float32) / 32768)


@torch.inference_mode()
def score(judge: RewardModel, wavs: list[torch.Tensor], prompts: list[str] | None = None) -> Values:
    """Rewards of mono clips, one by one where lengths differ."""
    out: list[float] = []
    begin = 0
    while begin < len(wavs):
        end = begin + 1
        while end < min(len(wavs), begin + 16) and wavs[end].shape == wavs[begin].shape:
            end += 1
        batch = torch.stack(wavs[begin:end])[:, None]
        out += judge(batch, SAMPLE_RATE, prompts[begin:end] if prompts else None).tolist()
        begin = end
    return np.array(out)


def ranks(values: Values) -> Values:
    """Ranks from 0, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]


def agreement(predicted: Values, teacher: Values) -> dict[str, float]:
    """Spearman, Kendall's tau-b, Pearson and pair agreement by the teacher's margin."""
    rows, columns = np.triu_indices(len(teacher), 1)
    margin = teacher[rows] - teacher[columns]
    given = predicted[rows] - predicted[columns]
    sign = np.sign(margin) * np.sign(given)
    ties = np.sqrt(np.mean(margin != 0) * np.mean(given != 0))
    figures = {
        "spearman": float(np.corrcoef(ranks(predicted), ranks(teacher))[0, 1]),
        "kendall": float(sign.mean() / ties) if ties else float("nan"),
        "pearson": float(np.corrcoef(predicted, teacher)[0, 1]),
    }
    for low in (0.0, 0.5, 1.0, 1.5):
        far = np.abs(margin) > low
        figures[f"pairs_margin_over_{low:g}"] = float((sign[far] > 0).mean()) if far.any() else float("nan")
    return figures


def bootstrap(predicted: Values, teacher: Values, draws: int = 1000) -> dict[str, list[float]]:
    """95 % intervals of `agreement`, resampling tracks."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(draws):
        chosen = rng.integers(0, len(teacher), len(teacher))
        rows.append(list(agreement(predicted[chosen], teacher[chosen]).values()))
    low, high = np.nanquantile(np.array(rows), (0.025, 0.975), axis=0)
    keys = agreement(predicted, teacher)
    return {key: [float(a), float(b)] for key, a, b in zip(keys, low, high, strict=True)}


def load_teacher(config: Config) -> list[tuple[dict[str, str], NDArray[np.int16]]]:
    """Rows of teacher.csv with their renders."""
    table = (config.teacher_dir or config.data_dir / "teacher") / "teacher.csv"
    if not table.exists():
        print(f"skipped: teacher agreement ({table} is absent)")
        return []
    held_out = set(HELD_OUT.read_text().split())
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if config.split == "all" or Path(row["midi"]).stem in held_out]
    found = []
    for row in rows:
        path = config.renders / f"{Path(row['midi']).stem}.npy"
        if path.exists():
            found.append((row, np.load(path, mmap_mode="r")))
    if len(found) < len(rows):
        print(f"skipped: {len(rows) - len(found)} of {len(rows)} teacher tracks without a render in {config.renders}")
    return found


def measure_teacher(judge: RewardModel, tracks: list[tuple[dict[str, str], NDArray[np.int16]]]) -> dict[str, Any]:
    """Agreement with the teacher on whole tracks, in all and within the larger collections."""
    teacher = np.array([float(row["teacher_reward"]) for row, _ in tracks])
    predicted = np.array([score(judge, [to_wav(audio)])[0] for _, audio in tqdm(tracks, desc="tracks")])
    figures, intervals = agreement(predicted, teacher), bootstrap(predicted, teacher)
    print(f"\nAgreement with the teacher on {len(tracks)} tracks\n| measure | value | 95 % interval |\n|---|---|---|")
    for key, value in figures.items():
        print(f"| {key} | {value:.3f} | {intervals[key][0]:.3f} to {intervals[key][1]:.3f} |")
    collections = {}
    names = [row["collection"] for row, _ in tracks]
    print("\n| collection | tracks | spearman | pairs over 1 |\n|---|---|---|---|")
    for name in sorted(set(names), key=lambda n: -names.count(n)):
        inside = np.array([n == name for n in names])
        if inside.sum() >= 8:
            part = agreement(predicted[inside], teacher[inside])
            collections[name] = {"tracks": int(inside.sum()), **part}
            print(f"| {name} | {inside.sum()} | {part['spearman']:.3f} | {part['pairs_margin_over_1']:.3f} |")
    scores = {row["midi"]: float(value) for (row, _), value in zip(tracks, predicted, strict=True)}
    return {"figures": figures, "intervals": intervals, "within_collection": collections, "rewards": scores}


def measure_faults(judge: RewardModel, wavs: list[torch.Tensor], what: str, quick: bool) -> dict[str, Any]:
    """Share of clips whose clean version beats the degraded one, and of the steps down the ladder (clean, mild,
    moderate, strong) that cost reward."""
    clean = score(judge, wavs)
    strengths = ("moderate",) if quick else STRENGTHS
    columns = strengths if quick else (*strengths, "steps in order")
    table: dict[str, dict[str, float]] = {}
    print(f"\nClean over degraded, {len(wavs)} {what}")
    print(f"| fault | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for kind in DEGRADATIONS:
        rungs = [clean]
        for strength in strengths:
            rungs.append(score(judge, [degrade(wav, kind, strength, seed) for seed, wav in enumerate(wavs)]))
        rates = [float((clean > spoiled).mean()) for spoiled in rungs[1:]]
        rates.append(float(np.mean([better > worse for better, worse in zip(rungs, rungs[1:], strict=False)])))
        table[kind] = dict(zip(columns, rates, strict=False))
        print(f"| {kind} | " + " | ".join(f"{rate:.3f}" for rate in table[kind].values()) + " |", flush=True)
    means = [np.mean([row[column] for row in table.values()]) for column in columns]
    print("| mean | " + " | ".join(f"{mean:.3f}" for mean in means) + " |", flush=True)
    return table


def measure_prompts(judge: RewardModel, wavs: list[torch.Tensor], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of clips whose right prompt beats a wrong one: another clip's caption, or one attribute changed."""
    rng = random.Random(0)
    captions = [record["captions"][0] for record in records]
    right = score(judge, wavs, captions)
    none = score(judge, wavs)
    table: dict[str, float] = {}
    shifts = [shift for shift in (1, 7, 23) if shift < len(wavs)]  # never a clip's own caption
    wrong = np.stack([score(judge, wavs, captions[shift:] + captions[:shift]) for shift in shifts])
    table["another clip's caption"] = float((right > wrong).mean())
    for other in (False, True):
        for kind in KINDS:
            wrongs = [changed(record["attributes"], kind, rng) for record in records]
            used = [i for i, attributes in enumerate(wrongs) if attributes]
            for kinds, name in (((kind,), f"{kind} alone"), (KINDS, f"{kind} among all")):
                good = [write_prompt(records[i]["attributes"], kinds, other) for i in used]
                bad = [write_prompt(wrongs[i] or {}, kinds, other) for i in used]
                clips = [wavs[i] for i in used]
                rate = (score(judge, clips, good) > score(judge, clips, bad)).mean()
                table[f"{name}{', other words' if other else ''}"] = float(rate)
    print(f"\nRight over wrong prompt, {len(wavs)} composed clips\n| wrong prompt | right wins |\n|---|---|")
    for name, rate in table.items():
        print(f"| {name} | {rate:.3f} |")
    table["mean reward, right prompt"], table["mean reward, no prompt"] = float(right.mean()), float(none.mean())
    table["standard deviation between clips, no prompt"] = float(none.std())
    return table


def write(path: Path | None, results: dict[str, Any]) -> None:
    """After every part, so that a measurement that is cut off leaves what it had."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


def main(config: Config) -> None:
    judge = load_reward(config.reward, device="cpu")
    print(f"{config.reward} on {describe_machine()}")
    results: dict[str, Any] = {"reward": config.reward, "split": config.split}
    count = config.num_clips // 6 if config.quick else config.num_clips
    tracks = load_teacher(config)
    if tracks:
        results["teacher"] = measure_teacher(judge, tracks[: len(tracks) // 2] if config.quick else tracks)
        write(config.output, results)
        each = max(1, count // len(tracks))
        windows = []
        for _, audio in tracks[:count]:
            for start in np.linspace(0.1, 0.7, each) * len(audio):
                windows.append(to_wav(audio[int(start) : int(start) + 10 * SAMPLE_RATE]))
        loud = [wav for wav in windows if wav.square().mean().sqrt() > 1e-3 and len(wav) > SAMPLE_RATE]
        results["faults_teacher"] = measure_faults(judge, loud, "windows of teacher tracks", config.quick)
        write(config.output, results)
    shards = sorted(config.composed.glob("shard-*.npy"))
    if not shards:
        print(f"skipped: faults and prompts on composed clips (no shard-*.npy in {config.composed})")
    else:
        clips: list[torch.Tensor] = []
        records: list[dict[str, Any]] = []
        for shard in shards:
            with shard.with_suffix(".jsonl").open() as file:
                lines = [json.loads(line) for line in file]
            clips += [to_wav(pcm) for pcm in np.load(shard, mmap_mode="r")[: count - len(clips)]]
            records += lines[: len(clips) - len(records)]
        results["faults_composed"] = measure_faults(judge, clips, "composed clips", config.quick)
        write(config.output, results)
        results["prompts"] = measure_prompts(judge, clips, records)
    write(config.output, results)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
