"""The `tunejury` command.

Each subcommand is a frozen dataclass in a file of its own, whose fields are its options and whose `run` does the work.
Nothing heavy is imported before a subcommand runs, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import tyro
from tyro.conf import FlagCreatePairsOff

from tunejury.command_calibrate import Calibrate
from tunejury.command_compare import Compare
from tunejury.command_evaluate import Evaluate
from tunejury.command_licenses import Licenses
from tunejury.command_line import read_flags
from tunejury.command_score import Score
from tunejury.command_verify import Verify
from tunejury.errors import InputError


class Command(Protocol):
    """A subcommand with its options filled in."""

    def run(self) -> None:
        """Do it; results on standard output, all else on standard error."""
        ...


COMMANDS: Mapping[str, Any] = {
    "score": Score,
    "compare": Compare,
    "evaluate": Evaluate,
    "calibrate": Calibrate,
    "licenses": Licenses,
    "verify": Verify,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for a user's mistake, after one line on standard error)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    command = cast(
        Command,
        read_flags(
            lambda: tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS),
                prog="tunejury",
                description="Judge music with a preference reward.",
                args=argv,
                config=(FlagCreatePairsOff,),
            )
        ),
    )
    try:
        command.run()
        sys.stdout.flush()
    except BrokenPipeError:
        # who reads has seen enough, as `head` does; the interpreter is not to find that out again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0
