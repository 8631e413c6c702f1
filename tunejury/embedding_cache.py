"""Embeddings kept on disk, so that a file that was heard once need not be heard again.

An embedding is found by the file's content (not its name), by the encoders (their configs and weights) and by what the
protocol lets them hear; a change of any of these asks for a new one. Heads are no part of it. Scoring and training
share one store: what `tunejury score --cache` heard, `recipes/train_reward.py --features` does not hear again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tunejury.checkpoints import read_tensors
from tunejury.errors import InputError
from tunejury.files import atomic_path
from tunejury.model import RewardModel

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
# what a kill can cost: at most so many embeddings, or those of so many seconds
SHARD_ROWS = 256
SECONDS_HELD = 20.0
KEY = "key"  # name of a shard's tensor of hashes, [N, 32] bytes


def content_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: the file may not be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a prompt, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def encoder_hash(model: RewardModel, names: Sequence[str] | None = None) -> str:
    """Hash of the configs and weights of the encoders of these names, or of all: what embeddings depend on beside the
    protocol.
    """
    encoders = model.config.to_dict()["encoders"]
    digest = hashlib.sha256()
    for name in sorted(encoders if names is None else names):
        digest.update(json.dumps([name, encoders[name]], sort_keys=True).encode())
        for key, tensor in sorted(model.encoders[name].state_dict().items()):
            digest.update(f"{key} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class EmbeddingCache:
    """A folder of embeddings in safetensors shards that only ever grows; several processes may share it.

    A shard is named by what it holds and written atomically, after `SHARD_ROWS` embeddings or `SECONDS_HELD` seconds,
    so a killed run goes on where it was, and shards made elsewhere with the same encoders can simply be copied in.
    Encoders and protocols each have a folder of their own in it: nothing is ever taken for another one's.

    Args:
        directory: the folder, made if missing.
        model: whose encoders and protocol the embeddings are of.
        modality: `audio`, found by the hash of a file's content, or `text`, by that of a prompt.

    Raises:
        InputError: the folder cannot be made.
        OSError: it cannot be read.
    """

    def __init__(self, directory: str | Path, model: RewardModel, modality: Literal["audio", "text"] = "audio") -> None:
        audio = list(model.listening["encoders"])
        names = audio if modality == "audio" else [name for name in model.config.encoders if name not in audio]
        self._dims = {name: int(model.encoders[name].dim) for name in names}  # type: ignore[arg-type]
        made_with = [encoder_hash(model, names), str(model.dtype), model.listening if modality == "audio" else modality]
        identity = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode())
        self.directory = Path(directory) / identity.hexdigest()[:32]
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{directory} cannot be the folder of a cache: {error.strerror}") from error
        self._places: dict[str, tuple[Path, int]] = {}  # key -> shard and row
        self._held: dict[str, dict[str, Tensor]] = {}
        self._held_since = 0.0
        self._lock = threading.Lock()  # files are read ahead by another thread than the one that embeds
        for shard in sorted(self.directory.glob("*.safetensors")):
            keys = _read(shard, [KEY])
            if keys is not None:
                self._places |= {bytes(row).hex(): (shard, place) for place, row in enumerate(keys[KEY].tolist())}

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self._places

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Embedding [dim] by encoder, None where there is none."""
        with self._lock:
            if key in self._held:
                return dict(self._held[key])
            place = self._places.get(key)
        if place is None:
            return None
        rows = self._rows(*place)
        return None if rows is None else {name: part[0] for name, part in rows.items()}

    def stack(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings [N, dim] of many keys by encoder, each shard read once.

        Raises:
            KeyError: there is none of a key; the first such.
        """
        self.flush()
        result = {name: torch.empty(len(keys), dim) for name, dim in self._dims.items()}
        shards: dict[Path, list[int]] = {}
        for place, key in enumerate(keys):
            shards.setdefault(self._places[key][0], []).append(place)
        for shard, places in shards.items():
            rows = self._rows(shard)
            if rows is None:  # damaged since it was opened
                raise KeyError(keys[places[0]])
            chosen = torch.tensor([self._places[keys[place]][1] for place in places])
            for name, part in rows.items():
                result[name] = result[name].to(part.dtype)
                result[name][places] = part[chosen]
        return result

    def put(self, key: str, embeddings: Mapping[str, Tensor]) -> None:
        """Keep embeddings [dim] by encoder.

        Raises:
            InputError: they are not finite.
            OSError: the folder cannot be written to.
        """
        row = {name: embeddings[name].detach().cpu().clone() for name in self._dims}
        for name, part in row.items():
            if not part.isfinite().all():
                raise InputError(f"encoder {name!r} gives embeddings that are not finite")
        with self._lock:
            if not self._held:
                self._held_since = time.monotonic()
            self._held[key] = row
        if len(self._held) >= SHARD_ROWS or time.monotonic() - self._held_since > SECONDS_HELD:
            self.flush()

    def flush(self) -> None:
        """Write what is held, as a shard.

        Raises:
            OSError: the folder cannot be written to.
        """
        from safetensors.torch import save

        if not self._held:
            return
        keys = list(self._held)
        tensors = {name: torch.stack([row[name] for row in self._held.values()]) for name in self._dims}
        tensors[KEY] = torch.tensor([list(bytes.fromhex(key)) for key in keys], dtype=torch.uint8)
        shard = self.directory / f"{hashlib.sha256(''.join(keys).encode()).hexdigest()[:32]}.safetensors"
        with atomic_path(shard) as temporary:
            temporary.write_bytes(save(tensors))
        with self._lock:
            self._places |= {key: (shard, place) for place, key in enumerate(keys)}
            self._held.clear()

    def _rows(self, shard: Path, place: int | None = None) -> dict[str, Tensor] | None:
        """A shard's embeddings, all [N, dim] or of one place [1, dim]; None, and forgotten, where it is damaged."""
        rows = _read(shard, list(self._dims), place)
        if rows is None or any(rows[name].shape[-1] != dim for name, dim in self._dims.items()):
            with self._lock:
                self._places = {key: where for key, where in self._places.items() if where[0] != shard}
            return None
        return rows


def _read(shard: Path, names: Sequence[str], row: int | None = None) -> dict[str, Tensor] | None:
    """Tensors of a shard, or one row of each; None where it is damaged or gone."""
    try:
        return read_tensors(shard, names, row)
    except InputError as error:
        logger.warning("%s; its clips are heard anew", error)
        return None
