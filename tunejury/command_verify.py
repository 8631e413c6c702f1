"""`tunejury verify`: whether the released files on this machine are the published ones and load without a leftover."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunejury.errors import InputError

if TYPE_CHECKING:
    from tunejury.model import RewardModel

PREFIX = "high quality instrumental music, "
# prompts of the demo clips (Song Describer captions, CC BY 4.0, as the project's own prompt list has them)
P0 = (
    "A melancholic rap piece driven by a steady drummachine beat, layered with subtle synth pads and a sparse electric "
    "guitar, creating a reflective, introspective atmosphere. The rhythm remains tight and repetitive, grounding the "
    "mood in a sense of quiet solitude and emotional depth."
)
P46 = "A fast garage track featuring an electric guitar, driven by raw energy and a loose, rhythmic feel."
P75 = (
    "A dark trance track featuring accordion, blending hypnotic rhythms with melancholic melodies and a pervasive, "
    "atmospheric mood."
)
# the clips of mode 2 were scored by a front end of their own: through 16 kHz for MERT too, without normalisation
OTHER_FRONT_END = 0.5


@dataclass(frozen=True)
class PublishedReward:
    """A clip of the project page and its reward by the released head, as published to two decimals."""

    beginning: str
    """Of the clip's file name."""
    reward: float
    prompts: tuple[str, ...]
    """What it was scored with; more than one where the publication leaves that open, and one of them must fit."""
    protocol: str = "release"
    """The one that is nearest to how the script behind it hears."""
    tolerance: float | None = None
    """None: that of the command line."""


PUBLISHED_REWARDS: tuple[PublishedReward, ...] = (
    PublishedReward("mode1_p75_n1", 0.05, (PREFIX + P75,)),
    PublishedReward("mode1_p75_top", 1.71, (PREFIX + P75,)),
    PublishedReward("mode2_tangoflux_p0_baseline", -1.11, (PREFIX + P0,), "training", OTHER_FRONT_END),
    PublishedReward("mode2_tangoflux_p0_ditto", 1.13, (PREFIX + P0,), "training", OTHER_FRONT_END),
    PublishedReward("mode3_p46_baseline", -2.06, ("", P46, PREFIX + P46)),
    PublishedReward("mode3_p46_finetuned", -0.05, ("", P46, PREFIX + P46)),
)
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
    """Parts that lie here, as part=path (head, clap, roberta, mert, muq, muq-base, xlm-roberta); the others come from
    the hub's cache.
    """
    demo: Path | None = None
    """Folder of the project page's demo clips; left out, their rewards are not checked. They are the rewards of the
    head `tunejury` alone.
    """
    tolerance: float = 0.05
    """How far a reward may be from the published one, which has two decimals and went through other resamplers."""
    device: str = "auto"
    """cpu, cuda, cuda:N; auto takes a GPU if there is one."""

    def run(self) -> None:
        """Print the table."""
        from tunejury.command_options import load_judge, parse_files
        from tunejury.releases import RELEASES, locate_release

        if not 0.0 <= self.tolerance < float("inf"):
            raise InputError(f"--tolerance is {self.tolerance}, expected a number from 0 up")
        if self.demo is not None and self.reward != "tunejury":
            raise InputError(f"the demo clips' published rewards are those of 'tunejury', not of {self.reward!r}")
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
            rows += self._demo_rows(self.demo, model)
        for name, passed, detail in rows:
            sys.stdout.write(f"{'pass' if passed else 'unknown' if passed is None else 'FAIL'}\t{name}\t{detail}\n")
        failed = sum(passed is False for _, passed, _ in rows)
        if failed:
            raise InputError(f"{failed} of {len(rows)} checks of {self.reward!r} failed")

    def _demo_rows(self, demo: Path, model: RewardModel) -> list[tuple[str, bool | None, str]]:
        from tunejury.scoring import find_audio_files

        rows: list[tuple[str, bool | None, str]] = []
        files = find_audio_files([demo])
        for published in sorted(PUBLISHED_REWARDS, key=lambda clip: clip.protocol):  # so that each is set once
            found = [file for file in files if file.name.startswith(published.beginning)]
            if not found:
                rows.append((published.beginning, None, f"no clip of that name in {demo}"))
                continue
            if model.config.protocol != published.protocol:
                model = model.with_protocol(published.protocol)
            rows.append(_row(found[0].name, partial(self._check, model, found[0], published)))
        return sorted(rows)

    def _check(self, model: RewardModel, file: Path, published: PublishedReward) -> str:
        from tunejury.scoring import score_files

        tolerance = self.tolerance if published.tolerance is None else published.tolerance
        rewards = score_files(model, [file] * len(published.prompts), published.prompts, batch_size=1)
        best = min(rewards, key=lambda reward: abs(reward - published.reward))
        prompt = published.prompts[rewards.index(best)]
        detail = (
            f"reward {best:+.3f}, published {published.reward:+.2f} within {tolerance:g}, "
            f"protocol {published.protocol}, {'with' if prompt else 'without'} prompt"
        )
        if abs(best - published.reward) > tolerance:
            raise InputError(detail)
        return detail


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
