"""DITTO: move the noise a clip starts from along the judge's gradient; baseline and optimised audio in one folder.

python recipes/ditto.py --prompt "slow jazz with a tenor saxophone"
python recipes/ditto.py --prompts prompts.txt --num-optimization-steps 40 --held-out-reward other-judge/
python recipes/ditto.py --reward compact:1.0 --reward clap-score:0.3
python recipes/ditto.py --reward compact --reward melody=tune.wav:0.5 --reward intensity=swell.wav:0.5
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from alignment.ditto import DittoConfig
from alignment.ditto_driver import ditto
from alignment.ditto_results import describe_ditto
from alignment.errors import InputError as AlignmentInputError
from alignment.objectives import WeightedSum, parse_rewards
from alignment.processes import SaidElsewhere, is_main, launched_processes, own_device
from alignment.requests import read_request
from alignment.runs import REPORT, RESULTS, RunDirectory
from tunejury.command_line import read_flags
from tunejury.errors import InputError as JudgeInputError

DEFAULT_PROMPTS = Path(__file__).parent / "prompts" / "default.txt"
CONTROLS = ("intensity=", "melody=")


@dataclass(frozen=True)
class Arguments(DittoConfig):
    """DITTO: optimise the initial latents of a clip for every prompt; the model's weights stay as they are."""

    prompts: Path | None = None
    """File of prompts (.txt, .json, .jsonl, .csv); 8 varied ones are shipped."""
    prompt: str | None = None
    """One prompt instead of a file."""
    backbone: str = "compact-flow"
    """Text-to-music model whose clips start from latents: a shipped name, a folder in diffusers' layout, a hub id."""
    adapter: Path | None = None
    """Folder of a LoRA adapter in PEFT's format for it, as expert iteration writes them."""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What rises, NAME or NAME:WEIGHT; given several times, their weighted sum. A judge (compact if not given),
    clap-score, or a control: intensity=FILE, melody=FILE follow a reference clip's loudness curve or melody."""
    held_out_reward: str | None = None
    """A judge that chooses the best iterate and stops over-optimised clips; none for none. If not given: compact-b
    where compact is optimised and compact-b is there."""
    protocol: str | None = None
    """What the judges hear of a clip; a judge's own protocol if not given."""
    output_dir: Path | None = None
    """Where everything goes; runs/ditto/<timestamp> if not given. The same command continues a stopped run."""
    overwrite: bool = False
    """Clear what a run left in the output folder and start anew."""
    device: str = "auto"
    """cpu, cuda, cuda:N, mps; auto takes a GPU where there is one."""
    dtype: str | None = None
    """Of the backbone: float32 (default), float16, bfloat16."""


def run(arguments: Arguments, processes: Any) -> tuple[Path, dict[str, Any]]:
    """Check everything, load, optimise, write. Returns the output folder and the contents of results.json."""
    config = DittoConfig(**{name: getattr(arguments, name) for name in DittoConfig.__dataclass_fields__})
    weights = parse_rewards(arguments.reward or ("compact",))
    asked = read_request("ditto", vars(arguments), DEFAULT_PROMPTS, processes)
    place = {"overwrite": arguments.overwrite, "processes": processes}
    directory = RunDirectory(asked.output_dir, "ditto", asked.settings, **place)
    if directory.finished and not arguments.overwrite:
        return directory.path, directory.read_json(RESULTS)

    from alignment import load_backbone
    from alignment.controls import IntensityControl, MelodyControl
    from alignment.ditto import check_latent_backbone
    from tunejury import load_audio, load_reward, save_audio
    from tunejury.clap_score import load_clap_score
    from tunejury.loading import held_out_reward
    from tunejury.side_metrics import Hearing

    device = own_device(arguments.device, processes)

    def load(name: str) -> Any:
        if name.startswith(CONTROLS):
            kind = IntensityControl if name.startswith("intensity=") else MelodyControl
            return kind(*load_audio(name.partition("=")[2]))
        return (
            load_clap_score(device=device)
            if name == "clap-score"
            else load_reward(name, device=device, protocol=arguments.protocol)
        )

    parts = {name: load(name) for name in weights}
    judges = {name: part for name, part in parts.items() if not name.startswith(CONTROLS)}
    objective = WeightedSum({name: (part, weights[name]) for name, part in parts.items()})
    other = held_out_reward(arguments.held_out_reward, next(iter(weights)))
    held_out = None if other is None else load(other)
    hearing = Hearing(next(iter(judges.values()))) if judges else None
    side: dict[str, Any] = parts if len(parts) > 1 else {}
    if hearing is not None and "clap-score" not in parts:
        side = {**side, **hearing.matches}
    info = {"reward": {"name": " + ".join(arguments.reward or ("compact",)), "licenses": {}}, "side": {}}
    for judge in judges.values():
        info["reward"]["licenses"] |= judge.licenses()
        info.setdefault("protocol", judge.protocol)
    if held_out is not None:
        record = {"name": held_out.config.name, "licenses": held_out.licenses(), "protocol": held_out.protocol}
        info["side"]["held_out_reward"] = record
    if hearing is not None:
        info["embedding"] = f"audio encoders of {hearing.model.config.name}"
    options = {"device": device, "dtype": arguments.dtype, "adapter": arguments.adapter}
    backbone = check_latent_backbone(load_backbone(arguments.backbone, **options))
    backbone.resolve(config.duration, config.num_inference_steps, config.guidance_scale)
    given = {"held_out": held_out, "side_rewards": side, "embed": hearing.embed if hearing else None, "info": info}
    given |= {"save_audio": save_audio, "load_audio": partial(load_audio, channels=1)}
    with tqdm(unit="clip", desc="ditto", disable=not is_main(processes)) as given["progress"], directory:
        return directory.path, ditto(backbone, objective, asked.prompts, config, directory, **given)


def main() -> None:
    arguments = read_flags(lambda: tyro.cli(Arguments))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    processes = launched_processes(arguments.device)
    try:
        output_dir, summary = run(arguments, processes)
        if is_main(processes):
            print(f"{describe_ditto(summary)}\nresults: {output_dir / RESULTS}\nreport: {output_dir / REPORT}")
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
