"""Draw N candidates per prompt, judge them, keep the best: audio, results.json and report.html in one folder.

python recipes/best_of_n.py
python recipes/best_of_n.py --prompt "slow jazz with a tenor saxophone" --num-candidates 16
python recipes/best_of_n.py --candidates my_clips/ --prompt "slow jazz with a tenor saxophone"
python recipes/best_of_n.py --strategy halving --num-candidates 32 --budget 4000nfe --held-out-reward other-judge/
accelerate launch --num_processes 4 recipes/best_of_n.py --prompts prompts.txt --output-dir runs/shared
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from alignment.best_of_n import BestOfNConfig, best_of_n, rank_existing
from alignment.errors import InputError as AlignmentInputError
from alignment.processes import SaidElsewhere, is_main, launched_processes, own_device
from alignment.requests import read_request
from alignment.results import describe
from alignment.runs import REPORT, RESULTS, RunDirectory
from tunejury.command_line import read_flags
from tunejury.errors import InputError as JudgeInputError

DEFAULT_PROMPTS = Path(__file__).parent / "prompts" / "default.txt"


@dataclass(frozen=True)
class Arguments:
    """Best-of-N: draw candidates for every prompt, judge them, keep the best."""

    prompts: Path | None = None
    """File of prompts (.txt, .json, .jsonl, .csv); 8 varied ones are shipped. With --candidates: its manifest."""
    prompt: str | None = None
    """One prompt instead of a file."""
    num_candidates: int = 8
    """Clips drawn for every prompt; clip k has the seed SEED + k."""
    backbone: str = "compact-flow"
    """Text-to-music model: a shipped name, a directory in diffusers' layout, or a hub id."""
    adapter: Path | None = None
    """Folder of a LoRA adapter in PEFT's format for it, as expert iteration writes them."""
    reward: str = "compact"
    """Judge: a known name, a directory made by save_pretrained, or a hub id."""
    held_out_reward: str | None = None
    """A second judge, whose rewards stand beside and never select; none for none. If not given: compact-b where
    compact selects and compact-b is there."""
    protocol: str | None = None
    """What the judge hears of a clip; the judge's own protocol if not given."""
    duration: float | None = None
    """Seconds; the backbone's own default if not given, as for the two below."""
    num_inference_steps: int | None = None
    """Denoising steps: more take longer."""
    guidance_scale: float | None = None
    """How closely the prompt is followed; 1 is without guidance."""
    temperature: float | None = None
    """Of a backbone that draws tokens, as the two below; its own default if not given."""
    top_k: int | None = None
    """Only the most probable tokens, so many, are drawn from; 0: all."""
    top_p: float | None = None
    """Of those only the fewest that reach this probability together; 1: all."""
    seed: int = 0
    """Of the first candidate."""
    batch_size: int = 8
    """Clips made and judged at once; halved where they do not fit the memory."""
    keep: Literal["best", "all"] = "best"
    """Audio that stays: the first and the best clip of each prompt, or all."""
    strategy: Literal["full", "halving"] = "full"
    """full: a final clip of every candidate; halving: cheap drafts first, final clips of the promising."""
    budget: str | None = None
    """What the generator may spend in all: 120s (summed over processes) or 4000nfe (network evaluations)."""
    selection: Literal["reward", "lower-bound"] = "reward"
    """By the reward, or by the reward less the uncertainty of a judge that gives one."""
    candidates: Path | None = None
    """Rank the audio files of this folder instead of making any; needs --prompt, or a manifest in the folder."""
    output_dir: Path | None = None
    """Where everything goes; runs/best_of_n/<timestamp> if not given. The same command continues a stopped run."""
    overwrite: bool = False
    """Clear what a run left in the output folder and start anew."""
    device: str = "auto"
    """cpu, cuda, cuda:N, mps; auto takes a GPU where there is one."""
    dtype: str | None = None
    """Of the backbone: float32 (default), float16, bfloat16."""


def run(arguments: Arguments, processes: Any) -> tuple[Path, dict[str, Any]]:
    """Check everything, load, draw, judge, write. Returns the output folder and the contents of results.json."""
    config = BestOfNConfig(**{name: getattr(arguments, name) for name in BestOfNConfig.__dataclass_fields__})
    asked = read_request("best_of_n", vars(arguments), DEFAULT_PROMPTS, processes)
    place = {"overwrite": arguments.overwrite, "processes": processes}
    directory = RunDirectory(asked.output_dir, "best_of_n", asked.settings, **place)
    if directory.finished and not arguments.overwrite:
        return directory.path, directory.read_json(RESULTS)

    from alignment import load_backbone
    from tunejury import load_audio, load_reward, save_audio
    from tunejury.loading import held_out_reward
    from tunejury.side_metrics import Hearing

    device = own_device(arguments.device, processes)
    reward = load_reward(arguments.reward, device=device, protocol=arguments.protocol)
    hearing = Hearing(reward)
    side = {"clap_score": hearing.clap_score} if hearing.clap_score else {}
    info = {"reward": {"name": reward.config.name, "licenses": reward.licenses()}, "protocol": reward.protocol}
    info |= {"embedding": f"audio encoders of {reward.config.name}", "side": {}}
    watching = held_out_reward(arguments.held_out_reward, arguments.reward)
    if watching is not None:
        other = side["held_out_reward"] = load_reward(watching, device=device)
        info["side"]["held_out_reward"] = {"name": other.config.name, "licenses": other.licenses()}
        info["side"]["held_out_reward"]["protocol"] = other.protocol
    # the judge's encoders hear one channel: an hour of eight channels is mixed down as it is read
    given = {"load_audio": partial(load_audio, channels=1), "side_rewards": side, "embed": hearing.embed, "info": info}
    with tqdm(unit="clip", desc="best of n", disable=not is_main(processes)) as given["progress"]:
        if asked.clips is not None:
            given |= {"batch_size": config.batch_size, "selection": config.selection}
            with directory:
                result = rank_existing(asked.clips, hearing, directory, **given)
        else:
            options = {"device": device, "dtype": arguments.dtype, "adapter": arguments.adapter}
            drawing = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
            options["defaults"] = {name: value for name, value in drawing.items() if value is not None}
            backbone = load_backbone(arguments.backbone, **options)
            backbone.resolve(config.duration, config.num_inference_steps, config.guidance_scale)
            with directory:
                result = best_of_n(backbone, hearing, asked.prompts, config, directory, save_audio=save_audio, **given)
    return directory.path, result.summary


def main() -> None:
    arguments = read_flags(lambda: tyro.cli(Arguments))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    processes = launched_processes(arguments.device)
    try:
        output_dir, summary = run(arguments, processes)
        if is_main(processes):
            print(f"{describe(summary)}\nresults: {output_dir / RESULTS}\nreport: {output_dir / REPORT}")
    except (AlignmentInputError, JudgeInputError, OSError) as error:
        if not isinstance(error, SaidElsewhere):
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        processes.destroy_process_group()


if __name__ == "__main__":
    main()
