"""Features of preference pairs, from embeddings that are computed once and kept (`tunejury.embedding_cache`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunejury.embedding_cache import SHARD_ROWS, EmbeddingCache, content_digest, text_digest
from tunejury.errors import InputError
from tunejury.model import RewardModel
from tunejury.preferences import PreferencePair
from tunejury.scoring import embed_batches, plan_batches
from tunejury.training import PairSet

ROWS_PER_CALL = 4096  # rows of embeddings made into features at a time


@dataclass(frozen=True)
class FailedClip:
    """A clip that could not be embedded."""

    path: str
    reason: str


class FeatureStore:
    """The embeddings in a folder, for one set of encoders.

    Args:
        directory: the folder; made if missing.
        model: the reward whose encoders embed.

    Raises:
        OSError: the folder cannot be read or written.
    """

    def __init__(self, directory: str | Path, model: RewardModel) -> None:
        self.model = model
        self._clips = EmbeddingCache(directory, model, "audio")
        self._prompts = EmbeddingCache(directory, model, "text")
        self._keys: dict[str, str] = {}  # of files that were hashed in this session

    def add(
        self,
        clips: Iterable[str | Path],
        prompts: Iterable[str] = (),
        *,
        batch_size: int = 16,
        progress: Callable[[int], object] | None = None,
    ) -> list[FailedClip]:
        """Embed what is not there yet.

        Args:
            clips: audio files.
            prompts: texts.
            batch_size: most clips embedded at once; it changes the time taken, not the embeddings.
            progress: called with the number of clips just embedded or found to be there.

        Returns:
            The clips that could not be read, and why; all others are in the store.

        Raises:
            InputError: the model gives embeddings that are not finite.
            OSError: a shard cannot be written; those before it are whole.
        """
        missing = [p for p in dict.fromkeys(prompts) if text_digest(p) not in self._prompts]
        for start in range(0, len(missing), SHARD_ROWS):
            chunk = missing[start : start + SHARD_ROWS]
            with torch.no_grad():
                embedded = self.model.encode_prompts(chunk)
            for row, prompt in enumerate(chunk):
                self._prompts.put(text_digest(prompt), {name: rows[row] for name, rows in embedded.items()})
        self._prompts.flush()
        return self._add_clips([str(clip) for clip in dict.fromkeys(map(str, clips))], batch_size, progress)

    def pair_set(self, pairs: Sequence[PreferencePair], columns: Tensor | None = None) -> PairSet:
        """The features of pairs whose clips and prompts have been added.

        Args:
            pairs: the pairs.
            columns: places [D'] of the features to keep, from `select_blocks`; None for all.

        Raises:
            InputError: an embedding is missing, or there is no pair.
        """
        rows: dict[tuple[str, str], int] = {}
        places = [
            [
                rows.setdefault((self._clip_key(clip), text_digest(pair.prompt)), len(rows))
                for clip in (pair.audio_a, pair.audio_b)
            ]
            for pair in pairs
        ]
        if not pairs:
            raise InputError("expected at least one preference pair, got none")
        keys = list(rows)
        features = []
        with torch.no_grad():
            for start in range(0, len(keys), ROWS_PER_CALL):
                chunk = keys[start : start + ROWS_PER_CALL]
                audio = self._stack(self._clips, [clip for clip, _ in chunk])
                text = self._stack(self._prompts, [prompt for _, prompt in chunk])
                made = self.model.features(audio, text).float().cpu()
                features.append(made if columns is None else made[:, columns])
        index = torch.tensor(places, dtype=torch.long)
        target = torch.tensor([pair.target for pair in pairs], dtype=torch.float32)
        return PairSet(torch.cat(features), index[:, 0], index[:, 1], target)

    def clip_embeddings(self, clips: Sequence[str | Path], encoder: str) -> Tensor:
        """Embeddings [N, dim] of added clips by one audio encoder, for the distances of `tunejury.distribution`.

        Raises:
            InputError: an embedding is missing, or there is no such encoder.
        """
        stacked = self._stack(self._clips, [self._clip_key(str(clip)) for clip in clips])
        if encoder not in stacked:
            raise InputError(f"unknown audio encoder {encoder!r}, expected one of: {', '.join(stacked)}")
        return stacked[encoder].cpu()

    def _add_clips(
        self, clips: Sequence[str], batch_size: int, progress: Callable[[int], object] | None
    ) -> list[FailedClip]:
        failed: list[FailedClip] = []
        todo: dict[str, str] = {}  # key -> path: equal files are embedded once
        for clip in clips:
            try:
                key = self._clip_key(clip)
            except (InputError, OSError) as error:
                failed.append(FailedClip(clip, " ".join(str(error).split())))
                continue
            if key not in self._clips:
                todo.setdefault(key, clip)
        if progress is not None and len(clips) > len(todo):
            progress(len(clips) - len(todo))
        keys, paths = list(todo), list(todo.values())
        try:
            for groups, unread in embed_batches(self.model, paths, plan_batches(paths, batch_size)):
                failed += [FailedClip(paths[place], " ".join(str(error).split())) for place, error in unread]
                for places, embedded in groups:
                    for row, place in enumerate(places):
                        self._clips.put(keys[place], {name: rows[row] for name, rows in embedded.items()})
                if progress is not None:
                    progress(len(unread) + sum(len(places) for places, _ in groups))
        finally:
            self._clips.flush()  # also when interrupted: what is done is kept
        return failed

    def _clip_key(self, clip: str) -> str:
        if clip not in self._keys:
            if not Path(clip).is_file():
                raise InputError(f"{clip} does not exist, expected an audio file")
            self._keys[clip] = content_digest(clip)
        return self._keys[clip]

    def _stack(self, cache: EmbeddingCache, keys: Sequence[str]) -> dict[str, Tensor]:
        try:
            stacked = cache.stack(keys)
        except KeyError as error:
            what = next((path for path, key in self._keys.items() if key == error.args[0]), f"a prompt ({error})")
            raise InputError(f"{what} is not embedded yet, add it to the store first") from None
        return {name: rows.to(self.model.device, self.model.dtype) for name, rows in stacked.items()}
