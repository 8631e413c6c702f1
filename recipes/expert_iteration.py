"""Expert iteration: draw candidates, keep the best, fine-tune a LoRA adapter on them, repeat, and know when to stop.

python recipes/expert_iteration.py
python recipes/expert_iteration.py --prompts mine.txt --held-out-prompts others.txt --learning-rates 1e-4 5e-4
accelerate launch --num_processes 4 recipes/expert_iteration.py --output-dir runs/shared
python recipes/best_of_n.py --adapter runs/expert_iteration/<timestamp>/adapters/<round>
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from alignment.errors import InputError as AlignmentInputError
from alignment.expert_iteration import ExpertIterationConfig, check_prompts, expert_iteration
from alignment.expert_results import describe
from alignment.lessons import check_objective
from alignment.lora import adapter_card, check_trainable, save_merged
from alignment.processes import SaidElsewhere, agree, is_main, launched_processes, own_device
from alignment.reference_audio import embed_files, find_reference
from alignment.requests import read_request
from alignment.runs import LOGS, REPORT, RESULTS, RunDirectory
from alignment.trackers import Tracker, check_tracker, start_tracker
from tunejury.command_line import read_flags
from tunejury.errors import InputError as JudgeInputError

PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Arguments:
    """Expert iteration: draw candidates, keep the best, fine-tune an adapter on them, repeat."""

    prompts: Path | None = None
    """File of training prompts (.txt, .json, .jsonl, .csv). If not given: of the 320 shipped ones all for a
    language model, the first 48 for a denoiser."""
    prompt: str | None = None
    """One training prompt instead of a file."""
    held_out_prompts: Path | None = None
    """File of other prompts, on which rounds are compared; 32 are shipped."""
    backbone: str = "compact-flow"
    """Text-to-music model: a shipped name, a directory in diffusers' or transformers' layout, or a hub id."""
    reward: str = "compact"
    """Judge: a known name, a directory made by save_pretrained, or a hub id."""
    held_out_reward: str | None = None
    """A second judge, which never selects; a round that it finds worse than the base is not returned. none for none;
    if not given: compact-b where compact selects, and the reverse."""
    protocol: str | None = None
    """What the judge hears of a clip; the judge's own protocol if not given."""
    reference_audio: Path | None = None
    """Folder of real music; the distance of each round's clips to it has a budget."""
    config: ExpertIterationConfig = field(default_factory=ExpertIterationConfig)
    merge: bool = False
    """Also write the selected round as a plain checkpoint, in the folder `merged`."""
    report_to: Tracker = "none"
    """Experiment tracker for losses and measures."""
    output_dir: Path | None = None
    """Where everything goes; runs/expert_iteration/<timestamp> if not given. The same command continues a run."""
    overwrite: bool = False
    """Clear what a run left in the output folder and start anew."""
    device: str = "auto"
    """cpu, cuda, cuda:N, mps; auto takes a GPU where there is one."""
    dtype: str | None = None
    """Of the backbone: float32 (default), float16, bfloat16."""


def run(arguments: Arguments, processes: Any) -> tuple[Path, dict[str, Any]]:
    """Check everything, load, iterate, write. Returns the output folder and the contents of results.json."""
    config = arguments.config
    config_options = asdict(config)
    nested = [config_options.pop(name) for name in ("selection", "lora", "training", "budgets")]
    options = {key: value for key, value in vars(arguments).items() if key not in ("config", "report_to", "merge")}
    options |= {key: value for part in (config_options, *nested) for key, value in part.items()}
    asked = read_request("expert_iteration", options, PROMPTS / "training.txt", processes, PROMPTS / "held_out.txt")
    check_prompts(asked.prompts, asked.held_out_prompts)
    if config.num_candidates is not None:
        config.selection.check(len(asked.prompts), config.num_candidates)
    check_tracker(arguments.report_to)
    files = None if arguments.reference_audio is None else find_reference(arguments.reference_audio)
    place = {"overwrite": arguments.overwrite, "processes": processes}
    directory = RunDirectory(asked.output_dir, "expert_iteration", asked.settings, **place)
    if directory.finished and not arguments.overwrite:
        return directory.path, directory.read_json(RESULTS)

    from alignment import load_backbone
    from tunejury import load_audio, load_reward, save_audio
    from tunejury.distribution import frechet_distance
    from tunejury.loading import held_out_reward
    from tunejury.side_metrics import Hearing

    device = own_device(arguments.device, processes)
    reward = load_reward(arguments.reward, device=device, protocol=arguments.protocol)
    hearing = Hearing(reward)
    side: dict[str, Any] = {**hearing.matches}
    info = {"reward": {"name": reward.config.name, "licenses": reward.licenses()}, "protocol": reward.protocol}
    info |= {"embedding": f"audio encoders of {reward.config.name}", "side": {}}
    watching = held_out_reward(arguments.held_out_reward, arguments.reward)
    if watching is not None:
        other = side["held_out_reward"] = load_reward(watching, device=device)
        info["side"]["held_out_reward"] = {"name": other.config.name, "licenses": other.licenses()}
    heard = partial(load_audio, channels=1)
    reference = None if files is None else embed_files(files, heard, hearing.embed)
    backbone = load_backbone(arguments.backbone, device=device, dtype=arguments.dtype)
    check_trainable(backbone)
    backbone.resolve(config.duration, config.num_inference_steps, config.guidance_scale)
    shipped = arguments.prompts is None and arguments.prompt is None
    training_prompts = asked.prompts[: backbone.learning.num_prompts if shipped else None]
    # once more with the family's own numbers, before there is a folder
    num_candidates = config.num_candidates or backbone.learning.num_candidates
    config.selection.check(len(training_prompts), num_candidates)
    check_objective(backbone, config.training, num_candidates)
    given = {"save_audio": save_audio, "load_audio": heard, "embed": hearing.embed, "distance": frechet_distance}
    given |= {"side_rewards": side, "reference": reference, "info": info}
    with directory, tqdm(unit="clip", desc="expert iteration", disable=not is_main(processes)) as given["progress"]:
        tracked = (arguments.report_to, "expert_iteration", directory.path / LOGS, asked.settings, processes.device)
        given["log"], close = start_tracker(*tracked)
        prompts = training_prompts, asked.held_out_prompts
        summary = expert_iteration(backbone, hearing, *prompts, config, directory, **given)
        close()
        if arguments.merge and summary["selected_adapter"] is not None:
            facts = {"selected round": summary["selected_round"], "adapter": summary["selected_adapter"]}
            card = adapter_card(backbone, facts, merged=True)
            agree(processes, lambda: str(save_merged(backbone, directory.path / "merged", card=card)))
    return directory.path, summary


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # it warns of the bias of few clips; sets of equal size are compared here
    logging.getLogger("tunejury.distribution").setLevel(logging.ERROR)
    arguments = read_flags(lambda: tyro.cli(tyro.conf.OmitArgPrefixes[Arguments]))
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
