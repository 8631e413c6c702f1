"""Several processes working on one run: who they are, and how they come to the same decision.

`accelerate launch` starts them and accelerate's PartialState knows them; drivers see only its `num_processes` and
`process_index`. They share a file system: what one of them finds out reaches the others through the run's own records.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from alignment.errors import InputError
from alignment.interfaces import Processes

logger = logging.getLogger(__name__)

T = TypeVar("T")

# a process that is done waits for the slowest; torch's own patience ends after minutes
PATIENCE = timedelta(days=30)


class SaidElsewhere(InputError):
    """An error of the main process, as the others hear of it: the main one reports it."""


@dataclass(frozen=True)
class OneProcess:
    """A run that nobody shares."""

    num_processes: int = 1
    process_index: int = 0


ALONE = OneProcess()


def launched_processes(device: str = "auto") -> Any:
    """accelerate's PartialState: the processes that `accelerate launch` started, or this one alone.

    `accelerate launch --cpu` starts a single process, whatever number it is asked for, unless MPI is set up
    (`--multi_gpu` starts several, on CPUs too): that is said in a warning.

    Args:
        device: "cpu" keeps a launched run off the GPUs.
    """
    import torch
    from accelerate import PartialState

    # without this, processes on a machine that has no GPU would each believe to be alone
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=PATIENCE)
    # the launcher leaves an address where it was asked for several
    several = "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if several and state.num_processes == 1:
        logger.warning(
            "accelerate launch --cpu has started one process only; for several on CPUs give it --multi_gpu instead, "
            "and this program --device cpu"
        )
    return state


def own_device(asked: str, processes: Any) -> str | None:
    """The device that this process is to load models on.

    Args:
        asked: auto, or a device's name. Of several processes each has its own GPU, where there are some.
        processes: as `launched_processes` gives them.

    Returns:
        a name, or None for the models' own choice.
    """
    if processes.num_processes > 1 and asked in ("auto", processes.device.type):
        # the CPU has no parts: accelerate calls it cpu:0
        return "cpu" if processes.device.type == "cpu" else str(processes.device)
    return None if asked == "auto" else asked


def is_main(processes: Processes) -> bool:
    return processes.process_index == 0


def agree(processes: Processes, function: Callable[[], T]) -> T:
    """Call a function in the main process; every process gets its value, and none goes on before it is known.

    Raises:
        InputError, OSError: the function's, in the main process; `SaidElsewhere` in the others.
    """
    if processes.num_processes == 1:
        return function()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    problem: InputError | OSError | None = None
    if is_main(processes):
        try:
            outcome[0] = function()
        except (ValueError, OSError) as error:  # a judge has an InputError of its own, a ValueError too
            problem = error  # type: ignore[assignment]
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if problem is not None:
        raise problem
    if outcome[1] is not None:
        raise SaidElsewhere(outcome[1])
    value: T = outcome[0]
    return value


def share(work: Sequence[T], processes: Processes) -> Sequence[T]:
    """This process's part: a run of neighbours, of equal length up to one, so that what belongs together is mostly in
    one hand.
    """
    start, stop = (len(work) * (processes.process_index + end) // processes.num_processes for end in (0, 1))
    return work[start:stop]
