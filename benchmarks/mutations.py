"""Damage to files: bytes changed, values of JSON changed, pickles that would run code if they were let."""

from __future__ import annotations

import builtins
import copy
import json
import os
import pickle
import random
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HEADER = 200  # bytes at the beginning of a file
ODD_VALUES: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 63, 10**6, 9_999_999, 10**12, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, False,
    None, "", "0", "\u0000", "../../etc/passwd", [], [[]], {}, {"kind": []}, [10**6] * 3, "x" * 10_000,
)  # fmt: skip


def damaged(content: bytes, chance: random.Random, near: float) -> bytes:
    """Some bytes changed, taken out, put in or cut off; with the probability `near` close to the beginning."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        end = min(len(data), HEADER) if chance.random() < near else len(data)
        place = chance.randrange(max(1, end))
        kind = chance.random()
        if kind < 0.6:
            data[place : place + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
        elif kind < 0.75:
            del data[place : place + chance.choice((1, 2, 4, 50))]
        elif kind < 0.9:
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 2, 4, 50))))
        else:
            data = data[: chance.randrange(len(data) + 1)]
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value within."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def changed_json(content: bytes, chance: random.Random) -> bytes:
    """The same JSON with one to three of its values made odd, dropped, or a few times what they were."""
    value = copy.deepcopy(json.loads(content))
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = _places(value)
        # long lists are vocabularies: half of the time what stands beside them is meant
        outer = [place for place in places if not (isinstance(place[0], list) and len(place[0]) > 20)]
        if not places:
            break
        container, key = chance.choice(outer if outer and chance.random() < 0.5 else places)
        kind, old = chance.random(), container[key]
        if kind < 0.2:
            del container[key]
        elif kind < 0.5 and isinstance(old, (int, float)) and not isinstance(old, bool):
            container[key] = chance.choice((old * 2, old * 1000, -old, old + 1, old - 1, old / 3))
        else:
            container[key] = copy.deepcopy(chance.choice(ODD_VALUES))
    return json.dumps(value).encode()


class _Payload:
    """What a pickle would call while it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def poisoned(state: dict[str, Tensor], marker: str, chance: random.Random) -> bytes:
    """A checkpoint with a call in it that would make a file of the name `marker`."""
    program = f"open({marker!r}, 'w').close()"
    payload = chance.choice((
        _Payload(os.system, f"touch {marker}"), _Payload(builtins.exec, program), _Payload(builtins.eval, program),
        _Payload(subprocess.check_call, ["touch", marker]), _Payload(open, marker, "w"),
        _Payload(getattr, _Payload(__import__, "os"), "system"), _Payload(torch.load, marker),
    ))  # fmt: skip
    values: Any = chance.choice((
        payload, {**state, "net.0.weight": payload}, {"state_dict": state, "best": payload},
        {"state_dict": payload}, [payload, state], {payload.__class__.__name__: state, "epoch": [[payload]]},
    ))  # fmt: skip
    way = chance.random()
    if way < 0.2:
        return pickle.dumps(values, protocol=chance.randrange(6))
    import io

    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=way < 0.7, pickle_protocol=chance.choice((2, 4)))
    return file.getvalue()
