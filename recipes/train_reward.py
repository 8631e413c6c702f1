"""Train a reward on preference pairs: embeddings kept, splits by source, an ensemble of seeds, a checkpoint with card.

python recipes/train_reward.py --pairs votes.jsonl
python recipes/train_reward.py --pairs arena.csv lab.csv --seeds 0 1 2 --leave-one-source-out
python recipes/train_reward.py --pairs votes.jsonl --preset paper --blocks audio
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff

from alignment.errors import InputError as AlignmentInputError
from alignment.runs import RESULTS, RunDirectory, default_output_directory, versions
from tunejury.command_line import read_flags
from tunejury.errors import InputError
from tunejury.preferences import PreferencePair, leave_one_source_out, read_pairs, split_pairs

METRICS = "metrics.jsonl"
CHANGES = ("learning_rate", "batch_size", "patience", "max_epochs", "widths", "margin", "centering")


@dataclass(frozen=True)
class Arguments:
    """Train a reward head on preference pairs."""

    pairs: tuple[Path, ...]
    """Files of votes (.jsonl, .csv, .json): prompt, audio_a, audio_b, winner (a, b, tie); source and split if any."""
    audio_root: Path | None = None
    """What relative paths of clips start from; the folder of each file if not given."""
    reward: str = "compact"
    """The reward whose encoders (and products) are used: a known name, a directory, or a hub id."""
    features: Path | None = None
    """Folder of embeddings, to share between runs; features/ in the output folder if not given."""
    blocks: tuple[str, ...] | None = None
    """Input blocks the head is given, by encoder name, audio*text for a product; all if not given."""
    preset: Literal["default", "paper"] = "default"
    """Training settings: ours, or the published ones; the options below change single ones."""
    learning_rate: float | None = None
    batch_size: int | None = None
    """Pairs in a training step."""
    patience: int | None = None
    max_epochs: int | None = None
    widths: tuple[int, ...] | None = None
    margin: float | None = None
    centering: float | None = None
    seeds: tuple[int, ...] = (0,)
    """One head is trained for each; the reward is their mean."""
    split_fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Train, validation and test, of every source, for pairs whose file names no split."""
    split_by: Literal["prompt", "pair"] = "prompt"
    """What stays together in a split."""
    split_seed: int = 0
    leave_one_source_out: bool = False
    """Also train without each source in turn, and measure on it."""
    name: str = "my-reward"
    license: str = "unknown"
    """Licence of the new head; your votes decide it."""
    export_released: bool = False
    """Also write head.pt and head.json as the reference implementation reads them (heads on CLAP and MERT alone)."""
    device: str = "auto"
    output_dir: Path | None = None
    """Where everything goes; runs/train_reward/<timestamp> if not given."""
    overwrite: bool = False
    """Train anew in a folder that holds a run."""


def read_all(arguments: Arguments) -> list[PreferencePair]:
    pairs: list[PreferencePair] = []
    for path in arguments.pairs:
        read = read_pairs(path, audio_root=arguments.audio_root)
        pairs += [replace(p, pair_id=f"{path.stem}:{p.pair_id}") for p in read] if len(arguments.pairs) > 1 else read
    if len({pair.pair_id for pair in pairs}) < len(pairs):
        raise InputError("two files of one name hold the same pair ids; rename a file")
    return pairs


def run(arguments: Arguments) -> tuple[Path, dict[str, Any]]:
    """Check, embed, train, measure, write. Returns the output folder and the contents of results.json."""
    pairs = read_all(arguments)
    digest = hashlib.sha256(json.dumps([asdict(pair) for pair in pairs]).encode()).hexdigest()
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "overwrite")}
    settings = json.loads(json.dumps({**settings, "votes": digest}, default=str))
    output_dir = arguments.output_dir or default_output_directory("train_reward", settings)
    directory = RunDirectory(output_dir, "train_reward", settings, overwrite=arguments.overwrite)
    if directory.finished and not arguments.overwrite:
        return output_dir, directory.read_json(RESULTS) or {}
    splits = split_pairs(pairs, arguments.split_fractions, seed=arguments.split_seed, group=arguments.split_by)

    from tunejury import load_reward
    from tunejury.assembly import assemble_reward, select_blocks
    from tunejury.card import model_card
    from tunejury.features import FeatureStore
    from tunejury.releases import excluded_blocks, save_head
    from tunejury.training import PAPER, EpochRecord, TrainConfig, evaluate_head, fit_ensemble, merge_heads

    config = PAPER if arguments.preset == "paper" else TrainConfig()
    config = replace(config, **{c: getattr(arguments, c) for c in CHANGES if getattr(arguments, c) is not None})
    base = load_reward(arguments.reward, device=None if arguments.device == "auto" else arguments.device)
    chosen, columns = select_blocks(base.config, arguments.blocks)
    excluded = excluded_blocks(chosen) if arguments.export_released else []
    with directory:
        directory.start({"versions": versions(), "licenses": base.licenses(), "protocol": base.protocol})
        store = FeatureStore(arguments.features or output_dir / "features", base)
        clips = list(dict.fromkeys(clip for pair in pairs for clip in (pair.audio_a, pair.audio_b)))
        with tqdm(total=len(clips), unit="clip", desc="embedding") as bar:
            failed = store.add(clips, [pair.prompt for pair in pairs], progress=bar.update)
        bad = {failure.path for failure in failed}
        sound = {name: [p for p in split if not {p.audio_a, p.audio_b} & bad] for name, split in splits.items()}
        directory.write_records([], METRICS)

        def fit(train: list[PreferencePair], validation: list[PreferencePair], left_out: str | None = None) -> Any:
            def log(seed: int, record: EpochRecord) -> None:
                directory.append_records([{"seed": seed, "left_out": left_out, **asdict(record)}], METRICS)
                bar.update()
                bar.set_postfix(validation_loss=record.validation_loss)

            sets = store.pair_set(train, columns), store.pair_set(validation, columns)
            with tqdm(unit="epoch", desc=f"training{f' without {left_out}' if left_out else ''}") as bar:
                results = fit_ensemble(*sets, config, arguments.seeds, device=base.device, on_epoch=log)
            return results, merge_heads([result.head for result in results])

        def measure(head: Any, chosen: list[PreferencePair]) -> dict[str, Any]:
            loss, accuracy = evaluate_head(head, store.pair_set(chosen, columns))
            return {"loss": loss, "accuracy": accuracy, "num_pairs": len(chosen), "ties": sum(p.is_tie for p in chosen)}

        results, head = fit(sound["train"], sound["validation"])
        summary: dict[str, Any] = {
            "recipe": "train_reward",
            "splits": {name: measure(head, split) for name, split in sound.items() if split},
            "test_by_source": {
                source: measure(head, [p for p in sound["test"] if p.source == source])
                for source in sorted({p.source for p in sound["test"]})
            },
            "seeds": {str(result.config.seed): result.summary() for result in results},
            "failed": [asdict(failure) for failure in failed],
            "pairs_left_out": len(pairs) - sum(map(len, sound.values())),
        }
        if arguments.leave_one_source_out:
            summary["leave_one_source_out"] = {}
            for source, rest, own in leave_one_source_out([p for split in sound.values() for p in split]):
                inner = split_pairs(rest, (0.9, 0.1, 0.0), seed=arguments.split_seed, group=arguments.split_by)
                outer = fit(inner["train"] + inner["test"], inner["validation"], source)[1]
                summary["leave_one_source_out"][source] = measure(outer, own)
        reward = assemble_reward(base, head, name=arguments.name, license=arguments.license, blocks=arguments.blocks)
        table = json.dumps(summary["splits"], indent=1)
        card = model_card(reward.config, reward.licenses())
        card += f"\nTrained on {len(sound['train'])} pairs; mean of {len(results)} head(s).\n\n```json\n{table}\n```\n"
        reward.save_pretrained(output_dir / "reward", card=card)
        if arguments.export_released:
            save_head(head, output_dir / "head.pt", excluded)
        directory.write_json(RESULTS, summary)
    return output_dir, summary


def show(output_dir: Path, summary: dict[str, Any]) -> None:
    rows = list(summary["splits"].items()) + [(f"test, {s}", r) for s, r in summary["test_by_source"].items()]
    rows += [(f"without {s}, on it", r) for s, r in summary.get("leave_one_source_out", {}).items()]
    print("| pairs | number | ties | loss | accuracy |\n|---|---|---|---|---|")
    for name, row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        print(f"| {name} | {row['num_pairs']} | {row['ties']} | {row['loss']:.4f} | {accuracy} |")
    if summary["failed"]:
        print(f"left out: {summary['pairs_left_out']} pairs, for {len(summary['failed'])} clips that cannot be read")
    print(f"reward: {output_dir / 'reward'}\nresults: {output_dir / RESULTS}")


def main() -> None:
    arguments = read_flags(lambda: tyro.cli(Arguments, config=(FlagCreatePairsOff,)))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        show(*run(arguments))
    except (InputError, AlignmentInputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
