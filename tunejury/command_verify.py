"""`tunejury verify`: whether the released files on this machine are the published ones and load without a leftover."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunejury.errors import InputError

if TYPE_CHECKING:
    from tunejury.model import RewardModel

# rewards published on the project page, by the beginning of the clip's name; by the released head, `release` protocol
PUBLISHED_REWARDS: Mapping[str, float] = {
    "mode1_p75_n1": 0.05,
    "mode1_p75_top": 1.71,
    "mode2_tangoflux_p0_baseline": -1.11,
    "mode2_tangoflux_p0_ditto": 1.13,
    "mode3_p46_baseline": -2.06,
    "mode3_p46_finetuned": -0.05,
}
SHA256: Mapping[str, str] = {
    "music_audioset_epoch_15_esc_90.14.pt": "fae3e9c087f2909c28a09dc31c8dfcdacbc42ba44c70e972b58c1bd1caf6dedd",
}
# the heads are in the authors' git repository, where a file's name is the SHA-1 of its length and content
GIT_BLOB: Mapping[str, str] = {
    "tunejury.pt": "61dd349cc1eb90706ea9075c990d3cc31167f7c2",
    "A1_clap_audio_only.pt": "75bc1f8cb3c8bca42f4a09be449b6cfac348ada5",
    "tunejury_muq_leave_MA.pt": "6913dca7719e611a4b7836b3b73f0144145a5466",
}


@dataclass(frozen=True)
class Verify:
    """Check the released files of a reward: checksums where they are known, that every weight finds its place, and
    the published rewards of the demo clips. One table of pass and fail; exit code 2 if anything fails.
    """

    reward: str = "tunejury"
    """Which released reward."""
    files: tuple[str, ...] = ()
    """Parts that lie here, as part=path (head, clap, roberta, mert, muq, muq-base, xlm-roberta); the others come from the hub's cache."""
    demo: Path | None = None
    """Folder of the project page's demo clips; left out, their rewards are not checked."""
    tolerance: float = 0.02
    """How far a reward may be from the published one, which has two decimals."""
    device: str = "auto"
    """cpu, cuda, cuda:N; auto takes a GPU if there is one."""

    def run(self) -> None:
        """Print the table."""
        from tunejury.command_options import load_judge, parse_files
        from tunejury.releases import RELEASES, locate_release

        if self.reward not in RELEASES:
            raise InputError(f"{self.reward!r} is no released reward, expected one of: {', '.join(RELEASES)}")
        located = locate_release(self.reward, parse_files(self.files))
        rows = [checksum_row(path) for path in (located.head, *located.parts.values()) if path.is_file()]
        model: RewardModel | None = None

        def load() -> str:
            nonlocal model
            model = load_judge(self.reward, self.device, None, self.files)
            return f"{sum(p.numel() for p in model.parameters()):,} parameters, none left over"

        rows.append(_row("weights", load))
        if self.demo is not None and model is not None:
            rows += self._demo_rows(model)
        for name, passed, detail in rows:
            sys.stdout.write(f"{'pass' if passed else 'unknown' if passed is None else 'FAIL'}\t{name}\t{detail}\n")
        failed = sum(passed is False for _, passed, _ in rows)
        if failed:
            raise InputError(f"{failed} of {len(rows)} checks of {self.reward!r} failed")

    def _demo_rows(self, model: RewardModel) -> list[tuple[str, bool | None, str]]:
        from tunejury.scoring import find_audio_files, score_files

        rows: list[tuple[str, bool | None, str]] = []
        files = find_audio_files([self.demo] if self.demo is not None else [])
        for beginning, published in PUBLISHED_REWARDS.items():
            found = [file for file in files if file.name.startswith(beginning)]
            if not found:
                rows.append((beginning, None, f"no clip of that name in {self.demo}"))
                continue
            reward = score_files(model, found[:1])[0]
            near = abs(reward - published) <= self.tolerance
            rows.append((found[0].name, near, f"reward {reward:+.3f}, published {published:+.2f}"))
        return rows


def checksum_row(path: Path) -> tuple[str, bool | None, str]:
    """Name, whether the file is the published one (None where no checksum of it is known), and why."""
    digest = hashlib.sha256()
    blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            blob.update(block)
    for known, found in ((SHA256, digest.hexdigest()), (GIT_BLOB, blob.hexdigest())):
        if path.name in known:
            passed = known[path.name] == found
            return path.name, passed, "checksum" if passed else f"checksum {found}, expected {known[path.name]}"
    return path.name, None, f"sha256 {digest.hexdigest()}, no published one to compare"


def _row(name: str, check: Callable[[], str]) -> tuple[str, bool | None, str]:
    try:
        return name, True, check()
    except InputError as error:
        return name, False, str(error)
