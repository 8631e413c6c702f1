"""Scoring audio files: each decoded once, equal lengths in batches, in bounded memory, in the order given."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from tunejury.audio import AUDIO_SUFFIXES, audio_length, load_audio
from tunejury.embedding_cache import EmbeddingCache, content_digest
from tunejury.errors import InputError
from tunejury.manifest import MANIFEST_SUFFIXES, Item, read_manifest
from tunejury.model import RewardModel

# decoded samples of a batch: 64 MiB of float32, so 6 minutes at 48 kHz; a longer clip is a batch of its own
BATCH_SAMPLES = 1 << 24
MOST_PROMPTS = 10_000  # whose embeddings are kept at a time


def find_audio_files(paths: Iterable[str | Path]) -> list[Path]:
    """Replace each folder by the audio files in it (wav, flac, ogg, mp3), sorted, at any depth, hidden ones left out.

    Raises:
        InputError: a folder holds no audio file, or nothing is given.
        OSError: a folder may not be read.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(_audio_files_in(path))
        if not found:
            raise InputError(f"{path} holds no audio file, expected at least one of: {' '.join(AUDIO_SUFFIXES)}")
        files += found
    if not files:
        raise InputError("no files given, expected audio files or folders of them")
    return files


def find_items(paths: Iterable[str | Path], prompt: str = "") -> list[Item]:
    """Replace folders by the audio files in them, as `find_audio_files` does, and manifests by their rows.

    Args:
        paths: audio files, folders, manifests (.jsonl, .csv).
        prompt: for what has none of its own.

    Raises:
        InputError: as `find_audio_files`, or a manifest is not as expected.
        OSError: a folder or a manifest may not be read.
    """
    items: list[Item] = []
    given = [Path(path) for path in paths]
    for path in given:
        if path.suffix.lower() in MANIFEST_SUFFIXES and not path.is_dir():
            items += read_manifest(path, prompt)
        else:
            items += [Item(file, prompt) for file in find_audio_files([path])]
    return items or [Item(file, prompt) for file in find_audio_files(given)]


def _audio_files_in(folder: Path) -> Iterable[Path]:
    def complain(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=complain):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(AUDIO_SUFFIXES):
                yield Path(parent, name)


def plan_batches(files: Sequence[str | Path], batch_size: int) -> list[list[int]]:
    """Divide files into batches of one sample rate and length, from their headers alone.

    The plan depends on the files and the batch size only, so that a run that was interrupted, or is shared among
    processes, judges every clip among the same neighbours and gives the same rewards to the last digit.

    Returns:
        Places in `files` by batch; a file without a readable header is a batch of its own.

    Raises:
        InputError: the batch size is below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}, expected at least 1")
    batches: list[list[int]] = []
    waiting: dict[object, list[int]] = {}
    for place, file in enumerate(files):
        key = audio_length(file)
        group = waiting.setdefault(key or place, [])
        group.append(place)
        if len(group) == batch_size or (key and (len(group) + 1) * key[1] > BATCH_SAMPLES):
            batches.append(waiting.pop(key or place))
    return batches + list(waiting.values())


def score_batches(
    model: RewardModel,
    files: Sequence[str | Path],
    prompts: Sequence[str],
    batches: Iterable[Sequence[int]],
    cache: EmbeddingCache | None = None,
) -> Iterator[list[tuple[int, float | InputError | OSError]]]:
    """Judge batches of a plan one after the other, reading the next one meanwhile.

    Args:
        model: the judge.
        files: audio files.
        prompts: one per file.
        batches: places in `files`.
        cache: embeddings kept from earlier runs; a batch is taken from it whole or not at all.

    Yields:
        For each batch, (place, reward, or why there is none) of each of its files.
    """
    texts: dict[str, dict[str, Tensor]] = {}  # a prompt is embedded once
    for groups, failed in embed_batches(model, files, batches, cache):
        results: list[tuple[int, float | InputError | OSError]] = []
        for places, audio in groups:
            with torch.no_grad():
                text = _embed_prompts(model, [prompts[place] for place in places], texts)
                rewards = model.reward(audio, text).tolist()
            results += [
                (place, reward if math.isfinite(reward) else _not_finite(files[place], reward))
                for place, reward in zip(places, rewards, strict=True)
            ]
        yield [*results, *failed]


def _not_finite(file: str | Path, reward: float) -> InputError:
    return InputError(f"{file}: its reward is {reward}, not a number that can be ranked; is the judge's file damaged?")


# places of clips that were heard together, and their embedding [B, dim] by audio encoder
Embedded = tuple[list[int], dict[str, Tensor]]


def embed_batches(
    model: RewardModel,
    files: Sequence[str | Path],
    batches: Iterable[Sequence[int]],
    cache: EmbeddingCache | None = None,
) -> Iterator[tuple[list[Embedded], list[tuple[int, InputError | OSError]]]]:
    """Hear batches of a plan one after the other, reading the next one meanwhile.

    Args:
        model: whose audio encoders hear them.
        files: audio files.
        batches: places in `files`, as `plan_batches` gives them.
        cache: embeddings kept from earlier runs; a batch is taken from it whole or not at all.

    Yields:
        For each batch, what was heard together, and (place, why) of each file that cannot be read.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as pool:
        remaining = iter(batches)
        coming = [pool.submit(_read_batch, files, batch, cache) for batch in islice(remaining, 2)]
        try:
            while coming:
                clips, failed = coming.pop(0).result()
                with torch.no_grad():
                    embedded = _embed(model, clips, cache)
                del clips
                # only now: no more than two batches are ever in memory
                coming += [pool.submit(_read_batch, files, batch, cache) for batch in islice(remaining, 1)]
                yield embedded, failed
        finally:
            if cache is not None:
                cache.flush()  # also when interrupted: what was heard is kept


@dataclass(frozen=True)
class _Clip:
    """A file that was read: its samples [1, T], or its embeddings where all of its batch's are known."""

    place: int
    digest: str
    wav: Tensor | None = None
    sample_rate: int = 0
    embeddings: dict[str, Tensor] | None = None


def _read_batch(
    files: Sequence[str | Path], batch: Sequence[int], cache: EmbeddingCache | None
) -> tuple[list[_Clip], list[tuple[int, InputError | OSError]]]:
    clips: list[_Clip] = []
    failed: list[tuple[int, InputError | OSError]] = []
    digests = {}
    if cache is not None:
        try:
            digests = {place: content_digest(files[place]) for place in batch}
        except OSError:
            pass  # the file that cannot be read is named below
        known = [_Clip(place, digest, embeddings=cache.get(digest)) for place, digest in digests.items()]
        if known and all(clip.embeddings is not None for clip in known):
            return known, []
    for place in batch:
        try:
            wav, sample_rate = load_audio(files[place], channels=1)  # every encoder hears the mono mix
            clips.append(_Clip(place, digests.get(place, ""), wav, sample_rate))
        except (InputError, OSError) as error:
            failed.append((place, error))
    return clips, failed


def _embed(model: RewardModel, clips: Sequence[_Clip], cache: EmbeddingCache | None) -> list[Embedded]:
    embedded: list[Embedded] = []
    groups: dict[tuple[int, int], list[_Clip]] = {}  # by what was decoded: a header may be a few samples off
    for clip in clips:
        groups.setdefault((clip.sample_rate, 0 if clip.wav is None else clip.wav.shape[-1]), []).append(clip)
    for (sample_rate, _), group in groups.items():
        known = [clip.embeddings for clip in group if clip.embeddings is not None]
        if len(known) == len(group):
            audio = {name: torch.stack([one[name] for one in known]).to(model.device, model.dtype) for name in known[0]}
        else:
            wavs = [clip.wav for clip in group if clip.wav is not None]
            # a clip judged alone is not copied: it may be hours long
            audio = model.encode_audio(torch.stack(wavs) if len(wavs) > 1 else wavs[0][None], sample_rate)
            if cache is not None:
                for row, clip in enumerate(group):
                    if clip.digest:
                        cache.put(clip.digest, {name: embedding[row] for name, embedding in audio.items()})
        embedded.append(([clip.place for clip in group], audio))
    return embedded


def _embed_prompts(model: RewardModel, wanted: Sequence[str], texts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Embedding [B, dim] of the prompts by text encoder; `texts` keeps those met so far."""
    new = [prompt for prompt in dict.fromkeys(wanted) if prompt not in texts]
    if len(texts) + len(new) > MOST_PROMPTS:
        texts.clear()
        new = list(dict.fromkeys(wanted))
    for prompt in new:  # each by itself: the last digit would depend on which others are new
        texts[prompt] = {name: rows[0] for name, rows in model.encode_prompts([prompt]).items()}
    names = texts[wanted[0]].keys()
    return {name: torch.stack([texts[prompt][name] for prompt in wanted]) for name in names}


def score_files(
    model: RewardModel,
    files: Sequence[str | Path],
    prompts: Sequence[str] | None = None,
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
    cache: EmbeddingCache | None = None,
) -> list[float]:
    """Reward of each file.

    Args:
        model: the judge.
        files: audio files.
        prompts: one per file; None for none.
        batch_size: most clips judged at once; it changes the time taken, not the rewards.
        progress: called with the number of files that have just been judged.
        cache: embeddings kept from earlier runs.

    Returns:
        One reward per file, in the order given.

    Raises:
        InputError: a file cannot be used; the message names it.
        OSError: a file may not be read.
    """
    batches = plan_batches(files, batch_size)
    if prompts is not None and len(prompts) != len(files):
        raise InputError(f"expected one prompt per file, got {len(prompts)} prompts for {len(files)} files")
    rewards: dict[int, float] = {}
    for results in score_batches(model, files, prompts or [""] * len(files), batches, cache):
        for place, result in results:
            if isinstance(result, Exception):
                raise result
            rewards[place] = result
        if progress is not None:
            progress(len(results))
    return [rewards[place] for place in range(len(files))]
