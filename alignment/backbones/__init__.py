"""Text-to-music models behind one interface; `load_backbone` finds the right one."""

from __future__ import annotations

from alignment.backbones.known import available_backbones, check_backbone
from alignment.backbones.loading import load_backbone

__all__ = ["available_backbones", "check_backbone", "load_backbone"]
