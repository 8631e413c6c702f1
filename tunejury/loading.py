"""Loading rewards by name, from a directory, a released head file or the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tunejury.calibration import AnchorCalibration
from tunejury.checkpoints import check_is_file, fetch, one_line, read_json, read_safetensors
from tunejury.config import RewardConfig
from tunejury.encoders import default_config
from tunejury.errors import InputError
from tunejury.head import RewardHead
from tunejury.model import RewardModel
from tunejury.releases import RELEASES, locate_release, read_head, read_release, release_licenses
from tunejury.saving import CONFIG_FILE, WEIGHTS_FILE

COMPUTE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
HEAD_SUFFIX = ".pt"
# buffers that follow from a config alone, which published checkpoints do not all hold
DERIVED_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids", "embed_positions.inv_freq")

COUNTER = "num_batches_tracked"  # of a normalisation, which only training reads


@dataclass(frozen=True)
class KnownReward:
    """A reward that can be asked for by name."""

    license: str
    summary: str
    directory: Path | None
    """Where it lies in the package; None for a released head, whose parts come from the hub."""


WEIGHTS = Path(__file__).parent / "weights"
KNOWN_REWARDS: Mapping[str, KnownReward] = {
    "compact": KnownReward(
        license="CC BY-NC 4.0",
        summary="small judge shipped with the package, a student of the released TuneJury",
        directory=WEIGHTS / "compact",
    ),
    "compact-b": KnownReward(
        license="CC BY-NC 4.0",
        summary="second small judge, built and trained apart from compact, to watch over what compact drives",
        directory=WEIGHTS / "compact-b",
    ),
    **{name: KnownReward(release.license, release.summary, None) for name, release in RELEASES.items()},
}


# judge that drives a run -> one trained apart from it, which is not fooled by all that fools the first
HELD_OUT_REWARDS: Mapping[str, str] = {"compact": "compact-b", "compact-b": "compact"}


def held_out_reward(asked: str | None, *drivers: str | Path) -> str | None:
    """Which judge watches over a run that others drive.

    Args:
        asked: what the user wants: a judge, `none`, or None for the one that is shipped for the purpose.
        drivers: the judges whose rewards are optimised or select.

    Returns:
        What to give to `load_reward`; None for none, so also where the shipped one is itself among the drivers.
    """
    if asked is not None:
        return None if asked == "none" else asked
    names = [str(driver) for driver in drivers]
    return next((HELD_OUT_REWARDS[name] for name in names if HELD_OUT_REWARDS.get(name, name) not in names), None)


def load_reward(
    name_or_path: str | Path = "compact",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    protocol: str | None = None,
    files: Mapping[str, str | Path] | None = None,
    calibration: str | Path | AnchorCalibration | None = None,
    system: str | None = None,
) -> RewardModel:
    """Load a trained reward.

    Args:
        name_or_path: a known name (`compact`, or a released head: `tunejury`, `tunejury-clap`, `tunejury-muq`), a
            directory made by `RewardModel.save_pretrained`, the id of such a directory on the Hugging Face hub
            (`owner/name`), or a released head's `.pt` file, with the `.json` that describes it beside it.
        device: where to; None takes a CUDA GPU if there is one, else the CPU.
        dtype: what to compute in, float32 (None) or float64, whatever the weights are stored as; or bfloat16, with
            which the encoders multiply in half precision (`RewardModel.use_half_precision`) and all else is float32.
        protocol: name of the listening protocol; None keeps the one the reward was made for.
        files: parts of a released head that are not to be taken from the hub: `head` (.pt), `clap` (the .pt, or the
            folder of a transformers ClapModel), `roberta` and `mert` (folders); for the MuQ-MuLan head `muq` and
            `xlm-roberta` (folders) and `muq-base` (config.json of the MuQ that MuQ-MuLan was made from).
        calibration: an `AnchorCalibration`, or the file of one (`tunejury calibrate` writes it), that the rewards go
            through: the difference of two is then a calibrated log-odds.
        system: what made the clips; needed with `calibration`.

    Returns:
        The reward, frozen and in evaluation mode.

    Raises:
        InputError: there is no such reward, device or protocol, the checkpoint is damaged, or the calibration is no
            calibration or made for another judge.
        OSError: its files may not be read.
    """
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        raise InputError(
            f"dtype is {dtype}, but a reward is computed in float32, float64, or bfloat16 for the encoders' products"
        )
    target = choose_device(device)
    if str(name_or_path) in RELEASES or (str(name_or_path).endswith(HEAD_SUFFIX) and not Path(name_or_path).is_dir()):
        located = locate_release(name_or_path, files)
        config, state = read_release(located)
        source = weights = " with ".join(map(str, [located.head, *located.parts.values()]))
    elif files:
        raise InputError(f"files are for the parts of a released head ({', '.join(RELEASES)}), not for {name_or_path}")
    else:
        directory = _find(name_or_path)
        source, weights = str(directory / CONFIG_FILE), str(directory / WEIGHTS_FILE)
        config, state = _read_config(directory / CONFIG_FILE), None
    if protocol is not None:
        config = replace(config, protocol=protocol)
    if state is None:
        state = read_safetensors(directory / WEIGHTS_FILE)
    shipped = KNOWN_REWARDS.get(str(name_or_path))
    if shipped is None or shipped.directory is None:
        # first without memory: a damaged config may ask for more of it than there is, and is found out by its weights
        with torch.device("meta"):
            _fit(_build(config, source).state_dict(), state, weights)
    model = _build(config, source)
    load_weights(model, state, weights)
    if calibration is not None:
        if not isinstance(calibration, AnchorCalibration):
            calibration = AnchorCalibration.load(calibration)
        if system is None:
            known = ", ".join(calibration.systems)
            raise InputError(f"a calibrated reward needs the system that made the clips, the votes were on: {known}")
        model.calibrate(calibration, system)
    if dtype == torch.bfloat16:
        model.use_half_precision(dtype)
        dtype = None
    return model.to(target, dtype or torch.float32)


def reward_licenses(name_or_path: str | Path) -> dict[str, str]:
    """Licence of every part of a reward by name: the reward itself, then each encoder. Its weights are not read.

    Raises:
        InputError: there is no such reward.
        OSError: its config may not be read.
    """
    if str(name_or_path) in RELEASES:
        return release_licenses(str(name_or_path))
    config = _read_config(_find(name_or_path) / CONFIG_FILE)
    parts = {
        name: str(encoder.get("license") or default_config(str(encoder["kind"])).license)
        for name, encoder in config.encoders.items()
    }
    return {config.name: config.license} | parts


def load_head(path: str | Path) -> RewardHead:
    """Load a reward head alone from a released `.pt` file (a state dict), in evaluation mode on the CPU.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
        OSError: the file may not be read.
    """
    return read_head(Path(path))


def choose_device(device: str | torch.device | None) -> torch.device:
    """Turn a device's name into a device that is there; None takes a CUDA GPU if there is one, else the CPU.

    Raises:
        InputError: the name means nothing, or the machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {str(device)!r} cannot be used (expected cpu, cuda or cuda:N): {one_line(error)}"
        ) from error
    return chosen


def _find(name_or_path: str | Path) -> Path:
    known = KNOWN_REWARDS.get(str(name_or_path))
    if known is not None and known.directory is not None:
        return known.directory
    path = Path(name_or_path)
    if path.is_dir():
        return path
    names = (
        f"expected one of: {', '.join(KNOWN_REWARDS)}, a directory made by save_pretrained, a released head (.pt), "
        "or a hub id (owner/name)"
    )
    if path.exists():
        raise InputError(f"{path} is a file, not a reward; {names}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name_or_path)):
        raise InputError(f"unknown reward {str(name_or_path)!r}; {names}")
    try:
        return fetch(str(name_or_path), [CONFIG_FILE, WEIGHTS_FILE])
    except InputError as error:
        raise InputError(f"reward {str(name_or_path)!r} is no directory here; {error}; {names}") from error


def _read_config(path: Path) -> RewardConfig:
    check_is_file(path, "it in a reward's directory as save_pretrained writes it")
    values = read_json(path, "reward config")
    try:
        return RewardConfig.from_dict(values)
    except InputError as error:
        raise InputError(f"{path} is no reward config: {one_line(error)}") from error


def _build(config: RewardConfig, source: str) -> RewardModel:
    # the fresh weights are overwritten at once; drawing them must not move the caller's random numbers on
    with torch.random.fork_rng(devices=[]):
        try:
            return RewardModel(config)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error


def load_weights(model: RewardModel, state: dict[str, Tensor], source: str) -> None:
    """Give a model its weights, all of them and no others.

    Raises:
        InputError: they do not fit the model's config, or are not finite; the message names `source`.
    """
    built = model.state_dict()
    state = _fit(built, state, source)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source} is damaged: {name} holds NaN or infinite values")
        # whole numbers are tables of places in other tensors, and follow from the config
        if (
            not tensor.is_floating_point()
            and not name.endswith(COUNTER)
            and not torch.equal(tensor.to(built[name]), built[name])
        ):
            raise InputError(f"{source} is damaged: {name} is not the table that its config gives")
    model.load_state_dict(state)  # copies, so weights stored in half precision become the model's float32


def _fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights with what follows from a config alone, if they have the names, shapes and kinds that are expected."""
    derived = [name for name in expected if name.endswith(DERIVED_BUFFERS)]
    state = {**{name: expected[name] for name in derived}, **state}
    for problem, names in (("lacks", expected.keys() - state.keys()), ("has unknown", state.keys() - expected.keys())):
        if names:
            raise InputError(
                f"{source} does not fit its config: it {problem} {len(names)} tensor(s), first {min(names)}"
            )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{source} does not fit its config: {name} is {list(tensor.shape)}, "
                f"expected {list(expected[name].shape)}"
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"{source} is damaged: {name} holds {tensor.dtype}, expected {expected[name].dtype}")
    return state
