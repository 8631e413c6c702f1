"""The released TuneJury heads: what each is made of, where its parts lie, and how they become a reward.

A head file holds nothing but its weights. Which encoders it reads, in which order, is known by its name or told by the
JSON beside it: `{"input_dim": 512, "exclude": ["mert", "text"]}`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunejury.checkpoints import fetch, read_json, read_state_dict
from tunejury.config import HeadConfig, InputBlock, RewardConfig
from tunejury.encoders import default_config
from tunejury.errors import InputError
from tunejury.files import atomic_path
from tunejury.head import RewardHead
from tunejury.parts import Part, read_clap_audio, read_clap_text, read_mert, read_muq_audio, read_muq_text

# blocks of features in the order the full head was trained with, by the names its JSON excludes them under
FULL = ("clap_audio", "mert", "text")
DROPOUT = 0.5  # the released heads were trained with; only further training would use it


@dataclass(frozen=True)
class HubFiles:
    """Files of a Hugging Face hub repository."""

    repository: str
    files: tuple[str, ...]
    revision: str | None = None

    @property
    def single(self) -> bool:
        """Whether it stands for one file, not for a folder of them."""
        return len(self.files) == 1


@dataclass(frozen=True)
class Release:
    """A released head."""

    head: HubFiles
    blocks: tuple[str, ...]
    license: str
    summary: str


NON_COMMERCIAL = "CC BY-NC 4.0"
RELEASES: Mapping[str, Release] = {
    "tunejury": Release(
        HubFiles("TuneJury/tunejury", ("tunejury.pt",)),
        FULL,
        NON_COMMERCIAL,
        "the released TuneJury: LAION-CLAP music and MERT-v1-330M",
    ),
    "tunejury-clap": Release(
        HubFiles("TuneJury/tunejury", ("A1_clap_audio_only.pt",)),
        ("clap_audio",),
        "Apache-2.0",
        "released head on LAION-CLAP audio alone, blind to the prompt; open to commercial use",
    ),
    "tunejury-muq": Release(
        HubFiles("TuneJury/tunejury", ("tunejury_muq_leave_MA.pt",)),
        ("muq_audio", "muq_text"),
        NON_COMMERCIAL,
        "released head on MuQ-MuLan, trained without Music Arena's votes",
    ),
}
# the parts the heads stand on, by the name `files` gives them
PARTS: Mapping[str, HubFiles] = {
    "clap": HubFiles(
        "lukewys/laion_clap",
        ("music_audioset_epoch_15_esc_90.14.pt",),
        "b3708341862f581175dba5c356a4ebf74a9b6651",
    ),
    "roberta": HubFiles(
        "FacebookAI/roberta-base", ("vocab.json", "merges.txt"), "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
    ),
    "mert": HubFiles(
        "m-a-p/MERT-v1-330M", ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
    ),
    "muq": HubFiles("OpenMuQ/MuQ-MuLan-large", ("config.json", "model.safetensors", "pytorch_model.bin")),
    "muq-base": HubFiles("OpenMuQ/MuQ-large-msd-iter", ("config.json",)),
    "xlm-roberta": HubFiles("FacebookAI/xlm-roberta-base", ("config.json", "tokenizer.json")),
}
FILE_NAMES = ("head", *PARTS)


@dataclass(frozen=True)
class _Block:
    """A block of features: its encoder's kind and modality, the parts it is read from, and how."""

    kind: str
    modality: str
    parts: tuple[str, ...]

    def read(self, paths: list[Path]) -> Part:
        readers: Mapping[str, Any] = {
            "clap-audio": read_clap_audio,
            "clap-text": read_clap_text,
            "mert": read_mert,
            "muq-audio": read_muq_audio,
            "muq-text": read_muq_text,
        }
        part: Part = readers[self.kind](*paths)
        return part


_BLOCKS: Mapping[str, _Block] = {
    "clap_audio": _Block("clap-audio", "audio", ("clap",)),
    "mert": _Block("mert", "audio", ("mert",)),
    "text": _Block("clap-text", "text", ("clap", "roberta")),
    # in this order by the one script that makes such features; no published file says it
    "muq_audio": _Block("muq-audio", "audio", ("muq", "muq-base")),
    "muq_text": _Block("muq-text", "text", ("muq", "xlm-roberta")),
}


@dataclass(frozen=True)
class Located:
    """A released head found: what it reads and the files to read it from."""

    name: str
    license: str
    blocks: tuple[str, ...]
    head: Path
    parts: Mapping[str, Path]


def locate_release(name_or_path: str | Path, files: Mapping[str, str | Path] | None = None) -> Located:
    """Find the files of a released reward, fetching from the hub what is not given.

    Args:
        name_or_path: a key of `RELEASES`, or a head file, known by its name or described by the `.json` beside it.
        files: parts that lie here: `head` (.pt), `clap` (the .pt, or a ClapModel's folder), `roberta`, `mert`, `muq`
            and `xlm-roberta` (folders), `muq-base` (config.json).

    Raises:
        InputError: a part is not to be had, or nothing says what the head reads.
    """
    given = {part: Path(path) for part, path in (files or {}).items()}
    unknown = sorted(given.keys() - set(FILE_NAMES))
    if unknown:
        raise InputError(f"unknown part {unknown[0]!r} of a released reward, expected some of: {', '.join(FILE_NAMES)}")
    if str(name_or_path) in RELEASES:
        name, release = str(name_or_path), RELEASES[str(name_or_path)]
        head = _locate(release.head, given.get("head"))
        blocks, license = release.blocks, release.license
    else:
        head = Path(name_or_path)
        name = head.stem
        blocks, license = read_blocks(head)
    return Located(name, license, blocks, head, locate_parts(blocks, given))


def locate_parts(blocks: Sequence[str], files: Mapping[str, Path]) -> dict[str, Path]:
    """Files of the encoders of some blocks of `FULL`, fetching from the hub what is not given.

    Raises:
        InputError: a part is not to be had.
    """
    needed = dict.fromkeys(part for block in blocks for part in _BLOCKS[block].parts)
    return {part: _locate(PARTS[part], files.get(part)) for part in needed}


def read_release(located: Located) -> tuple[RewardConfig, dict[str, Tensor]]:
    """A released reward's config and the weights of all its parts by their names in `RewardModel`.

    Raises:
        InputError: a part is damaged, or not what the head was trained with.
        OSError: a file may not be read.
    """
    head = read_head(located.head)
    encoders, inputs, state = read_encoders(located.blocks, located.parts)
    state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    features = sum(block.dim for block in inputs)
    if features != head.input_dim:
        raise InputError(
            f"{located.head} reads {head.input_dim} features, but {', '.join(encoders)} give {features}: expected the "
            "encoders it was trained with"
        )
    widths = tuple(len(tensor) for name, tensor in state.items() if name.startswith("head.") and tensor.ndim == 2)
    config = RewardConfig(located.name, located.license, encoders, tuple(inputs), HeadConfig(widths[:-1], DROPOUT))
    return config, state


def read_encoders(
    blocks: Sequence[str], parts: Mapping[str, Path]
) -> tuple[dict[str, Mapping[str, Any]], list[InputBlock], dict[str, Tensor]]:
    """Configs of the encoders of some blocks, the input blocks they give, and their weights by their names in
    `RewardModel`; errors as for `read_release`.
    """
    encoders: dict[str, Mapping[str, Any]] = {}
    inputs: list[InputBlock] = []
    state: dict[str, Tensor] = {}
    for name in blocks:
        block = _BLOCKS[name]
        settings, weights, dim = block.read([parts[part] for part in block.parts])
        encoders[block.kind] = {"kind": block.kind, **settings}
        state |= {f"encoders.{block.kind}.{weight}": tensor for weight, tensor in weights.items()}
        inputs.append(InputBlock(block.modality, (block.kind,), dim))
    return encoders, inputs, state


def release_licenses(name: str) -> dict[str, str]:
    """Licence of every part of a released reward, by name, without reading any of it."""
    release = RELEASES[name]
    kinds = [_BLOCKS[block].kind for block in release.blocks]
    return {name: release.license} | {kind: str(default_config(kind).license) for kind in kinds}


def read_head(path: Path) -> RewardHead:
    """A reward head alone from a released `.pt` file, in evaluation mode on the CPU.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
        OSError: the file may not be read.
    """
    state = read_state_dict(path)
    try:
        return RewardHead.from_state_dict(state).eval()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def save_head(head: RewardHead, path: str | Path, exclude: Sequence[str] = ()) -> None:
    """Write a head as the reference implementation reads it: `path` (`.pt`, names `net.*`) and a `.json` beside it.

    Args:
        head: the head; a merged ensemble is one as well, though of widths the reference code does not expect.
        path: of the `.pt` file.
        exclude: names of the blocks of `FULL` the head was trained without.

    Raises:
        InputError: the path does not end in `.pt`, or the blocks are not some, but not all, of `FULL`.
        OSError: the files cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise InputError(f"{path}: expected a name that ends in .pt")
    _blocks_left(list(exclude), f"exclude of {path}")
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}, buffer)
    sidecar = json.dumps({"input_dim": head.input_dim, "exclude": sorted(exclude)}, indent=2)
    for target, content in ((path, buffer.getvalue()), (path.with_suffix(".json"), sidecar.encode())):
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)


def excluded_blocks(config: RewardConfig) -> list[str]:
    """What `save_head` is told of a head with these inputs: the blocks of `FULL` it does without.

    Raises:
        InputError: the inputs are not some of `FULL`, in its order: the released format cannot say what the head reads.
    """
    names = {block.kind: name for name, block in _BLOCKS.items()}
    kinds = [str(config.encoders[encoder]["kind"]) for block in config.inputs for encoder in block.encoders]
    blocks = [names.get(kind, "") for kind in kinds]
    if any(block.kind == "product" for block in config.inputs) or blocks != [b for b in FULL if b in blocks]:
        raise InputError(
            f"a head on {', '.join(kinds)} cannot be written in the released format, whose inputs are some of "
            f"{', '.join(_BLOCKS[name].kind for name in FULL)}, in this order"
        )
    return [name for name in FULL if name not in blocks]


def read_blocks(head: Path) -> tuple[tuple[str, ...], str]:
    """Blocks that a head file given by its path reads, of `FULL` where the `.json` beside it tells, and its licence.

    Raises:
        InputError: nothing says what it reads, or the `.json` beside it is not as expected.
        OSError: a file may not be read.
    """
    known = {release.head.files[0]: release for release in RELEASES.values()}.get(head.name)
    license = known.license if known else NON_COMMERCIAL
    sidecar = head.with_suffix(".json")
    if sidecar.exists():
        values = read_json(sidecar, "description of a head")
        values = values if isinstance(values, Mapping) else {}
        if known is not None and "exclude" not in values:
            blocks = known.blocks
        else:
            blocks = _blocks_left(values.get("exclude"), str(sidecar))
        input_dim = read_head(head).input_dim
        if values.get("input_dim", input_dim) != input_dim:
            raise InputError(f"{sidecar} says {values['input_dim']} input values, {head} takes {input_dim}")
        return blocks, license
    if known is not None:
        return known.blocks, license
    input_dim = read_head(head).input_dim
    if input_dim == 2048:
        return FULL, license
    raise InputError(
        f"{head} reads {input_dim} features and nothing says of which encoders, expected {sidecar.name} beside it, "
        'such as {"input_dim": 512, "exclude": ["mert", "text"]}'
    )


def _blocks_left(excluded: object, source: str) -> tuple[str, ...]:
    blocks = tuple(block for block in FULL if block not in excluded) if isinstance(excluded, list) else ()
    if not isinstance(excluded, list) or not blocks or len(blocks) + len(excluded) != len(FULL):
        raise InputError(f'{source} has no list "exclude" of some, not all, of: {", ".join(FULL)}')
    return blocks


def _locate(source: HubFiles, given: Path | None) -> Path:
    """Path of a part: the one given, else from the hub; of a file if it stands for one, else of the folder."""
    path = given if given is not None else fetch(source.repository, source.files, source.revision)
    if source.single and path.is_dir() and (path / source.files[0]).exists():
        return path / source.files[0]
    if not path.exists():
        raise InputError(f"{path} does not exist, expected {' or '.join(source.files)} of {source.repository}")
    return path
