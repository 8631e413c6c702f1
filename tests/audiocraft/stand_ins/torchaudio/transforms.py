"""Names that audiocraft imports; nothing here can be built."""

from __future__ import annotations

from typing import Any


class MelSpectrogram:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a stand-in")
