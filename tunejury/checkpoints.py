"""Opening checkpoint files: the one place that reads weights or fetches them.

Nothing a file holds is ever executed: weights are safetensors, or a `.pt` opened with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunejury.errors import InputError

# smaller ones are read before they are parsed, so that an unreadable file is not taken for a damaged one
READ_WHOLE_BYTES = 1 << 28


class _Inert:
    """What stands for anything of numpy in a training checkpoint: it takes what it is given and keeps nothing."""

    def __init__(self, *values: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# loss records and the like beside the weights of LAION-CLAP's training checkpoint; no numpy code runs for them
_IGNORED_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Inert, f"numpy{name}")
    for name in (".core.multiarray.scalar", "._core.multiarray.scalar", ".dtype", ".dtypes.Float64DType")
]


def check_is_file(path: Path, expected: str) -> None:
    """Raise InputError unless `path` is a file; `expected` says what it should be."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected {expected}")


def one_line(error: Any) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file that should hold a `what`.

    Raises:
        InputError: it is missing or no JSON.
    """
    check_is_file(path, f"a {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise InputError(f"{path} is no {what}: {one_line(error)}") from error


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file that should hold a `what`.

    Raises:
        InputError: it is missing or no text.
    """
    check_is_file(path, f"a {what}")
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no {what}: {one_line(error)}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Weights by name.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_is_file(path, "it in a reward's directory as save_pretrained writes it")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is damaged or cut short ({path.stat().st_size} bytes), copy or download it again: "
            f"{one_line(error)}"
        ) from error


def read_tensors(path: Path, names: Sequence[str], row: int | None = None) -> dict[str, Tensor]:
    """Some tensors of a safetensors file, or one row [1, ...] of each, without reading the rest.

    Raises:
        InputError: the file is missing, damaged, or lacks one of them.
        OSError: it may not be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if row is None:
                return {name: file.get_tensor(name) for name in names}
            return {name: file.get_slice(name)[row : row + 1] for name in names}
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path} is damaged or gone: {one_line(error)}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights by name from a `.pt` or `.bin` file: a state dict, or a training checkpoint with one as "state_dict".

    Raises:
        InputError: the file is missing, damaged, or holds something else.
        OSError: the file may not be read.
    """
    check_is_file(path, "a checkpoint")
    size = path.stat().st_size
    with path.open("rb") as file:
        source = io.BytesIO(file.read()) if size <= READ_WHOLE_BYTES else file
        try:
            with torch.serialization.safe_globals(_IGNORED_GLOBALS):
                if size > READ_WHOLE_BYTES and zipfile.is_zipfile(path):
                    # mapped, not read: an optimiser's state beside the weights then takes no memory
                    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                else:
                    state = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader lets errors of many kinds out for a damaged file
            reason = one_line(error)
            raise InputError(f"{path} is damaged or no state dict ({size} bytes): {reason[:300]}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} holds {type(state).__name__}, expected a state dict (names and tensors)")
    for name, tensor in state.items():
        # a few stored numbers can stand for any size: who copies them asks for that much memory
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} is damaged: {name} is {list(tensor.shape)}, with fewer numbers in the file")
    return {str(name): tensor for name, tensor in state.items()}


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Weights of a model's directory as transformers writes it: `model.safetensors`, else `pytorch_model.bin`.

    Raises:
        InputError: neither is there, or it is damaged.
        OSError: the file may not be read.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).exists():
            return (read_safetensors if name.endswith(".safetensors") else read_state_dict)(directory / name)
    raise InputError(f"{directory} holds no weights, expected model.safetensors or pytorch_model.bin")


def read_bpe(directory: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Vocabulary, in the order of ids, and merges ("left right") of a byte-level BPE tokeniser's directory:
    `vocab.json` and `merges.txt`, else `tokenizer.json`.

    Raises:
        InputError: the files are missing or not those of such a tokeniser.
    """
    what = "RoBERTa tokeniser's file (vocab.json and merges.txt, or tokenizer.json)"
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        ids = read_json(directory / "vocab.json", what)
        lines = read_lines(directory / "merges.txt", what)
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    else:
        model = read_json(directory / "tokenizer.json", what)
        model = model.get("model") if isinstance(model, Mapping) else None
        ids = model.get("vocab") if isinstance(model, Mapping) else None
        pairs = model.get("merges") if isinstance(model, Mapping) else None
        pairs = pairs if isinstance(pairs, list) else []
        merges = [" ".join(map(str, pair)) if isinstance(pair, list) else str(pair) for pair in pairs]
    numbers = list(ids.values()) if isinstance(ids, Mapping) else []
    counted = numbers and all(type(number) is int for number in numbers)
    if not merges or not counted or sorted(numbers) != list(range(len(numbers))):
        raise InputError(f"{directory} is no RoBERTa tokeniser: its ids do not run from 0, or it has no merges")
    return tuple(sorted(ids, key=lambda token: ids[token])), tuple(merges)


def fetch(repository: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Bring files of a Hugging Face hub repository into the local cache, where they stay; the folder they are in.

    A file that the repository lacks is left out: who reads it says so.

    Raises:
        InputError: the hub cannot be reached and the cache has them not, or there is no such repository.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(files), revision=revision))
    # what the hub's client raises: no network, no such repository, offline, bad id
    except (OSError, ValueError) as error:
        raise InputError(
            f"{', '.join(files)} of {repository!r} could not be fetched from the Hugging Face hub, and the cache "
            f"{os.environ.get('HF_HUB_CACHE') or os.environ.get('HF_HOME') or '~/.cache/huggingface'} has no copy"
        ) from error
