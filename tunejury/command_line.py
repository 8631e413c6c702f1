"""Reading command lines: what is wrong with a flag is told in one line, as every other mistake is."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = "╭╮╰╯│─ "


def read_flags(read: Callable[[], T]) -> T:
    """Call what parses the command line with tyro; a mistake in it is one `error: ...` line and exit code 2.

    Args:
        read: such as `lambda: tyro.cli(Arguments)`. A ValueError that a dataclass of flags raises, however deeply it is
            nested, is told as it is; of what tyro says itself, in a box of several lines, the sentence.

    Raises:
        SystemExit: with code 2 after a mistake, with 0 after --help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return read()
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # of processes that were launched together the first one speaks
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {_refusal(stop) or _sentence(said.getvalue())}\n")
        raise SystemExit(2) from None


def _refusal(stop: SystemExit) -> str | None:
    """What a dataclass said of its values, where that is why parsing stopped."""
    error: BaseException | None = stop
    while error is not None:
        # a plain ValueError is a conversion's, such as int("x"): it does not name the flag, the box does
        if isinstance(error, ValueError) and type(error) is not ValueError:
            return " ".join(str(error).split())
        error = error.__cause__ or error.__context__
    return None


def _sentence(box: str) -> str:
    """The first section of a box drawn around lines of text, without its title; where the terminal has no characters
    to draw with, the title is a line of its own over a row of hyphens.
    """
    lines = [line.strip(_FRAME) for line in _COLOUR.sub("", box).splitlines() if not line.startswith("╭")]
    lines = [line if line.strip("-") else "" for line in lines]
    if "╭" not in box and "" in lines:
        del lines[: lines.index("") + 1]
    section: list[str] = []
    for line in lines:
        if line:
            section.append(line)
        elif section:
            break
    return f"{' '.join(section).rstrip('.')}; --help lists what there is"
