"""Clips of the backbones to listen to: players, prompts, spectrograms and rewards on one page that stands alone.

    python benchmarks/listening_page.py --output-dir runs/listening
    python benchmarks/listening_page.py --backbones compact-flow --prompts my_prompts.txt

Every backbone makes one clip of each prompt, so nothing is chosen; prompt k has the seed SEED + k, since clips of one
seed share more than the prompt asks for. The audio lies beside listening.html; the same command does not make a
backbone's clips again.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from kept import once, work_folder
from machine import describe_machine
from tqdm import tqdm

from alignment.backbones.known import available_backbones, check_backbone
from alignment.candidates import generate_clips
from alignment.errors import InputError as AlignmentInputError
from alignment.interfaces import Prompt
from alignment.prompts import load_prompts
from alignment.report_parts import MAX_EMBEDDED_BYTES, Players, figure_svg, licenses, settings, template
from alignment.runs import versions
from tunejury.command_line import read_flags
from tunejury.errors import InputError as JudgeInputError

PROMPTS = Path(__file__).parent / "prompts" / "quality.jsonl"
PAGE = "listening.html"
LOWEST, HIGHEST, BANDS = 40.0, 16_000.0, 240  # of a spectrogram, Hz
RANGE = 70.0  # dB of a spectrogram below its loudest moment
QUICK_CLIPS, QUICK_SECONDS = 2, 4.0


@dataclass(frozen=True)
class Config:
    """What to listen to."""

    backbones: tuple[str, ...] = tuple(available_backbones())
    """Names, directories or hub ids."""
    prompts: Path = PROMPTS
    """File of prompts (.txt, .json, .jsonl, .csv)."""
    num_clips: int = 10
    """Of each backbone: so many prompts, from the first."""
    reward: str = "compact"
    seed: int = 0
    """Of the first prompt."""
    duration: float | None = None
    """Seconds; the backbone's own default if not given, as for the two below."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    batch_size: int = 8
    output_dir: Path | None = None
    """Where the page and the audio go; runs/benchmarks/... if not given."""
    overwrite: bool = False
    """Make the clips anew."""
    output: Path | None = None
    """Also the rewards, as JSON."""
    quick: bool = False
    """2 clips of up to 4 s."""

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise AlignmentInputError(f"num_clips is {self.num_clips}; expected at least 1")
        if self.batch_size < 1:
            raise AlignmentInputError(f"batch_size is {self.batch_size}; expected at least 1")
        if len(set(self.backbones)) < len(self.backbones) or not self.backbones:
            raise AlignmentInputError(f"backbones are {list(self.backbones)}; expected one or more, each once")


def spectrogram(wav: Any, sample_rate: int) -> Any:
    """Level [bands, frames] in dB below the loudest, lowest first, of wav [T]; bands equally far apart in octaves."""
    import numpy as np
    import torch

    size = 2 ** round(np.log2(0.128 * sample_rate))
    wav = torch.nn.functional.pad(wav, (0, max(0, size - len(wav))))
    spectrum = torch.stft(wav, size, size // 8, window=torch.hann_window(size), return_complex=True).abs().square()
    centers = torch.logspace(np.log10(LOWEST), np.log10(min(HIGHEST, sample_rate / 2)), BANDS)
    spacing = sample_rate / size
    # a triangle around each centre, no narrower than the spectrum's own bins
    width = torch.clamp(centers * (centers[1] / centers[0] - 1), min=spacing)
    weights = (1 - (torch.arange(len(spectrum)) * spacing - centers[:, None]).abs() / width[:, None]).clamp_min(0)
    power = weights @ spectrum
    level = 10 * torch.log10(power / power.max().clamp_min(1e-12) + 1e-12)
    return level.clamp_min(-RANGE).numpy()


def draw_spectrogram(wav: Any, sample_rate: int, axes: Any) -> None:
    import numpy as np

    low, high = np.log2(LOWEST), np.log2(min(HIGHEST, sample_rate / 2))
    axes.imshow(
        spectrogram(wav, sample_rate), origin="lower", aspect="auto", cmap="magma", interpolation="none", zorder=2,
        extent=(0, len(wav) / sample_rate, low, high), vmin=-RANGE, vmax=0,
    )  # fmt: skip
    ticks = [hertz for hertz in (62.5, 125, 250, 500, 1000, 2000, 4000, 8000, 16000) if hertz <= 2**high]
    axes.set_yticks(np.log2(ticks[1::2]), [f"{hertz:g}" for hertz in ticks[1::2]])


def listen(name: str, prompts: list[Prompt], judge: Any, folder: Path, config: Config) -> dict[str, Any]:
    """Make and judge a clip of each prompt; what is told of them is laid out as in a recipe's results.json."""
    import torch

    from alignment import load_backbone
    from tunejury import load_audio, save_audio

    backbone = load_backbone(name)
    duration = config.duration
    if config.quick:
        duration = min(duration or QUICK_SECONDS, QUICK_SECONDS, backbone.defaults.duration)
    generation = backbone.resolve(duration, config.num_inference_steps, config.guidance_scale)
    seeds = [config.seed + k for k in range(len(prompts))]
    made: list[Any] = []
    started = time.perf_counter()
    for first in tqdm(range(0, len(prompts), config.batch_size), desc=name, unit="batch"):
        part = slice(first, first + config.batch_size)
        made += generate_clips(backbone, generation, [prompt.prompt for prompt in prompts[part]], seeds[part])
    seconds = time.perf_counter() - started
    folder.mkdir(exist_ok=True)
    clips = []
    for k, (prompt, seed, clip) in enumerate(zip(prompts, seeds, made, strict=True)):
        told = {**asdict(prompt), "seed": seed, "reward": None, "path": None, "error": None}
        if isinstance(clip, str):
            clips.append({**told, "error": clip})
            continue
        path = folder / f"{k:03d}.wav"
        save_audio(path, clip, backbone.sample_rate)
        with torch.inference_mode():
            reward = float(judge(load_audio(path, channels=1)[0][None], backbone.sample_rate, [prompt.prompt])[0])
        clips.append({**told, "reward": reward, "path": f"{folder.name}/{path.name}"})
    rewards = [clip["reward"] for clip in clips if clip["reward"] is not None]
    if not rewards:
        raise AlignmentInputError(f"{name} could make no clip at all; the first: {clips[0]['error']}")
    return {
        "made_by": made_by(name, prompts, config),
        "backbone": {"name": backbone.name, "license": backbone.license},
        "reward": {"name": judge.config.name, "licenses": judge.licenses()},
        "protocol": judge.protocol,
        "generation": generation.to_dict(),
        "seconds": {"generate": seconds},
        "versions": versions(),
        "clips": clips,
        "num_scored": len(rewards),
        "mean_reward": sum(rewards) / len(rewards),
    }


def made_by(name: str, prompts: list[Prompt], config: Config) -> dict[str, Any]:
    """What a backbone's clips depend on, as JSON values."""
    asked = ("reward", "seed", "duration", "num_inference_steps", "guidance_scale", "quick")
    listed = [[prompt.prompt_id, prompt.prompt] for prompt in prompts]
    return {"backbone": name, "prompts": listed, **{key: getattr(config, key) for key in asked}}


def listened(name: str, prompts: list[Prompt], judge: Any, folder: Path, config: Config) -> dict[str, Any]:
    """What `listen` tells, or told before."""
    file = folder.with_suffix(".json")
    if config.overwrite:
        file.unlink(missing_ok=True)
    told = once(file, lambda: listen(name, prompts, judge, folder, config))
    if told.get("made_by") != made_by(name, prompts, config):
        raise AlignmentInputError(f"{file} was made with other settings; choose another --output-dir or --overwrite")
    return told


def shown(clip: dict[str, Any], backbone: str, root: Path, players: Players) -> dict[str, Any]:
    """A clip with its player and its spectrogram."""
    from tunejury import load_audio

    figure = ""
    if clip["path"] is not None:
        wav, sample_rate = load_audio(root / clip["path"], channels=1)
        figure = figure_svg(partial(draw_spectrogram, wav[0], sample_rate), "Spectrogram", (7.2, 2.6))
    return {**clip, "backbone": backbone, "source": players.source(clip["path"]), "spectrogram": figure}


def make(config: Config) -> Path:
    """Check everything, make the clips, write the page; returns its path."""
    prompts = load_prompts(config.prompts)[: QUICK_CLIPS if config.quick else config.num_clips]
    for name in config.backbones:
        check_backbone(name)

    from tunejury import load_reward

    judge = load_reward(config.reward)
    root = work_folder("listening_page", config, config.output_dir)
    # two directories of one name are two backbones
    folders = [root / f"{index}-{Path(name).name}" for index, name in enumerate(config.backbones, 1)]
    summaries = [
        listened(name, prompts, judge, folder, config) for name, folder in zip(config.backbones, folders, strict=True)
    ]
    players = Players(root, MAX_EMBEDDED_BYTES)
    rows = [
        {
            **asdict(prompt),
            "clips": [shown(told["clips"][k], told["backbone"]["name"], root, players) for told in summaries],
        }
        for k, prompt in enumerate(prompts)
    ]
    machine = describe_machine()
    html = template("listening_page.html.j2", Path(__file__).parent).render(
        backbones=[summary["backbone"]["name"] for summary in summaries], summaries=summaries, rows=rows,
        reward=judge.config.name, machine=machine, range=f"{RANGE:g}", settings=settings,
        licenses=licenses,
    )  # fmt: skip
    page = root / PAGE
    page.write_text(html, encoding="utf-8")
    print(f"{len(prompts)} prompts, judge {judge.config.name}, on {machine}")
    for told in summaries:
        print(f"{told['backbone']['name']}: mean reward {told['mean_reward']:.3f} of {told['num_scored']} clips")
    if config.output:
        about = {"machine": machine, "backbones": {told["backbone"]["name"]: told for told in summaries}}
        config.output.write_text(json.dumps(about, indent=1) + "\n")
    return page


def main() -> None:
    config = read_flags(lambda: tyro.cli(Config, description=__doc__))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        print(f"page: {make(config)}")
    except (AlignmentInputError, JudgeInputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
