"""Judges every file of a folder with a judge, or a clip with every judge of a folder, and says what came of each.

    python damaged_files.py clips FOLDER JUDGE
    python damaged_files.py judges FOLDER CLIP

One JSON line per file: {"file", "reward"} or {"file", "error"}. It runs in a process of its own, because a decoder that
crashes takes its process along, and it ends at once, with code 3, if anything starts a program or opens a connection.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook."""
    if event.startswith(FORBIDDEN):
        sys.stderr.write(f"{event} {arguments}\n")
        os._exit(3)


def say(**line: Any) -> None:
    """One line, on its way before the next file is tried."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(what: str, folder: Path, other: Path) -> None:
    """Judge them."""
    import soundfile
    import torch

    from tunejury import InputError, load_reward
    from tunejury.encoders import compact  # noqa: F401  what is imported late would look like opened files
    from tunejury.scoring import score_files

    torch.set_num_threads(1)
    judge = load_reward(other, device="cpu") if what == "clips" else None
    sys.addaudithook(watch)
    for file in sorted(folder.iterdir()):
        try:
            if judge is not None:
                reward = score_files(judge, [file], ["calm piano"])[0]
                # the same samples by the decoder's simplest call
                samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
                with torch.no_grad():
                    again = float(judge(torch.from_numpy(samples.T.copy())[None], rate, ["calm piano"]))
                say(file=file.name, reward=reward, again=again, seconds=len(samples) / rate)
            else:
                loaded = load_reward(file, device="cpu", files=None)
                say(file=file.name, reward=score_files(loaded, [other], ["calm piano"])[0])
        except (InputError, OSError) as error:
            say(file=file.name, error=str(error))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
