"""CMI-RewardBench (github.com/Haiwen-Xia/CMI-RewardBench): its table, its figures, and our judge as one of its models.

Each line of its jsonl is a clip with ratings (PAM, MusicEval) or two clips with votes (Music Arena, CMI-Pref). Our
judge hears the audio and reads the prompt; lyrics and reference audio, which some lines have, it does not take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunejury.errors import InputError
from tunejury.preferences import WINNERS, PreferencePair, number, read_rows
from tunejury.ratings import RatedClip, existing_clip

SCALES = ("musicality", "text-music alignment")
# votes of each pair, by the name of the task
VOTES: Mapping[str, str] = {
    "preference": "preference",
    "musicality": "preference-musicality",
    "alignment": "preference-alignment",
}


@dataclass
class CmiRewardBench:
    """The benchmark's rows of one split."""

    clips: dict[str, list[RatedClip]] = field(default_factory=dict)
    """Rated clips by data set."""
    pairs: dict[str, list[PreferencePair]] = field(default_factory=dict)
    """Pairs by data set and task, e.g. `CMI-Pref musicality`."""
    num_with_lyrics: int = 0
    num_with_reference: int = 0


def is_cmi_row(row: Mapping[str, Any]) -> bool:
    """A row of the benchmark's table, told by its column names."""
    return "audio-path" in row


def read_cmi_rewardbench(
    path: str | Path, *, audio_root: str | Path | None = None, split: str = "test"
) -> CmiRewardBench:
    """Read the benchmark's jsonl.

    Args:
        path: the table.
        audio_root: folder the paths in it start from; None for the folder of the file.
        split: rows of this split are kept, and those that name none.

    Raises:
        InputError: the file is missing or damaged, a clip does not exist, a source or a label is unknown, or no row of
            the split is there.
    """
    path = Path(path)
    root = path.parent if audio_root is None else Path(audio_root)
    bench = CmiRewardBench()
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        if str(row.get("split") or split) != split:
            continue
        source, prompt = _dataset(row, where), str(row.get("prompt") or "").strip()
        first = existing_clip(root, str(row.get("audio-path") or ""), where)
        bench.num_with_lyrics += bool(row.get("lyrics"))
        bench.num_with_reference += bool(row.get("ref-audio-path"))
        if not row.get("audio2"):
            values = {scale: number(row.get(scale), scale, where) for scale in SCALES}
            ratings = {scale: value for scale, value in values.items() if value is not None}
            bench.clips.setdefault(source, []).append(RatedClip(first, prompt, ratings, source=source))
            continue
        second = existing_clip(root, str(row["audio2"]), where)
        for task, column in VOTES.items():
            vote = row.get(column)
            if vote in (None, ""):
                continue
            if str(vote).strip().lower() not in WINNERS:
                raise InputError(f"{where}: unknown {column} {vote!r}, expected one of: {', '.join(WINNERS)}")
            target = WINNERS[str(vote).strip().lower()]
            pair = PreferencePair(f"{line} {task}", target, prompt, first, second, source=f"{source} {task}")
            bench.pairs.setdefault(pair.source, []).append(pair)
    if not bench.clips and not bench.pairs:
        raise InputError(f"{path} has no rows of the split {split!r}")
    return bench


def benchmark_accuracy(pairs: Sequence[PreferencePair]) -> float:
    """The benchmark's own accuracy: a vote for both clips counts half, and equal rewards are taken as B.

    Raises:
        InputError: a reward is missing, or there is no pair.
    """
    scores = []
    for pair in pairs:
        if pair.reward_a is None or pair.reward_b is None:
            raise InputError("a reward is missing, judge the clips first")
        chosen = 1.0 if pair.reward_a > pair.reward_b else 0.0
        scores.append(0.5 if pair.is_tie else float(pair.target == chosen))
    if not scores:
        raise InputError("expected at least one pair to evaluate")
    return sum(scores) / len(scores)


class TuneJuryBenchmarkModel:
    """Our judge with the methods of the benchmark's `BenchmarkModelABC`, which takes any class that has them.

    Run in a checkout of the benchmark:

        python inference_benchmark.py --model_class_path tunejury.cmi_rewardbench:TuneJuryBenchmarkModel \\
            --checkpoint compact --device cpu --dataset_jsonl ... --dataset_root ...

    Args:
        checkpoint: the judge, as for `load_reward`.
        device: cpu, cuda, cuda:N.
        sr: Hz of waveforms given as tensors; files have their own.
    """

    def __init__(self, checkpoint: str = "compact", device: str = "cpu", sr: int = 24_000) -> None:
        from tunejury.loading import load_reward

        self.model = load_reward(checkpoint, device=device)
        self._sr = sr

    @property
    def sr(self) -> int:
        """Hz of waveforms given as tensors."""
        return self._sr

    def score_batch(
        self, inputs: Sequence[Any], batch_size: int, max_dur: float | None = None, **_: Any
    ) -> NDArray[np.float64]:
        """Rewards of a batch of the benchmark's inputs (attributes or keys `audio` and `text`).

        Args:
            inputs: B inputs; `audio` is a path or a tensor [T] or [C, T] at `sr`.
            batch_size: most clips judged at once.
            max_dur: seconds the benchmark's own models hear; the judge's protocol says what ours hears, so it is not
                used.

        Returns:
            [B, 2]: the reward with the prompt (its text-music alignment), and without (its musicality).
        """
        import torch

        from tunejury.scoring import score_files

        values = [dict(item) if isinstance(item, Mapping) else vars(item) for item in inputs]
        prompts = [str(value.get("text") or "") for value in values]
        scores = np.zeros((len(values), 2))
        files = [place for place, value in enumerate(values) if not isinstance(value["audio"], torch.Tensor)]
        if files:
            paths = [str(values[place]["audio"]) for place in files]
            with_prompt = score_files(self.model, paths, [prompts[place] for place in files], batch_size=batch_size)
            scores[files, 0] = with_prompt
            scores[files, 1] = score_files(self.model, paths, batch_size=batch_size)
        for place in set(range(len(values))) - set(files):
            wav = values[place]["audio"].float()
            wav = wav[None] if wav.ndim == 1 else wav
            with torch.no_grad():
                audio = self.model.encode_audio(wav[None], self._sr)
                for column, prompt in enumerate((prompts[place], "")):
                    scores[place, column] = float(self.model.reward(audio, self.model.encode_prompts([prompt])))
        return scores


def _dataset(row: Mapping[str, Any], where: str) -> str:
    source = str(row.get("source") or "")
    if "PAM" in source:
        return "PAM"
    if source in ("MusicEval", "SongEval"):
        return "MusicEval"
    if "Music Arena" in source:
        return "MusicArena"
    if source == "cmi-arena-annotation":
        return "CMI-Pref"
    raise InputError(
        f"{where}: unknown source {source!r}, expected PAM, MusicEval, SongEval, Music Arena or cmi-arena-annotation"
    )
