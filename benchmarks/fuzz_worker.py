"""A process that judges damaged files one after the other, and the watch over it; `fuzz_inputs.py` makes the files."""

from __future__ import annotations

import json
import math
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import soundfile
import torch
from random_judge import write_random_release

from tunejury import InputError, RewardModel, load_reward
from tunejury.scoring import score_files

PROMPT = "calm piano"
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect")
RAN_CODE = 3  # exit code
MOST_MEMORY = 2 << 30  # bytes that a single damaged file may take


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook."""
    if event.startswith(FORBIDDEN):
        os._exit(RAN_CODE)


def work() -> None:
    """Judge what standard input asks for, a line of JSON each."""
    judge = load_reward("compact", device="cpu")  # and with it all that is imported late
    with tempfile.TemporaryDirectory() as folder:
        load_reward(write_random_release(Path(folder))[0], device="cpu")
    sys.addaudithook(watch)
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        case = json.loads(line)
        try:
            result = judge_case(case, judge)
        except (InputError, OSError) as error:
            result = {"outcome": "error", "detail": str(error)}
        except Exception as error:
            result = {"outcome": "traceback", "detail": f"{type(error).__name__}: {error}"}
        if result["outcome"] == "error" and "\n" in result["detail"]:
            result["outcome"] = "error of several lines"
        result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


def judge_case(case: dict[str, Any], compact: RewardModel) -> dict[str, Any]:
    """Its outcome; errors as for `load_reward` and `score_files`."""
    if "reward" in case:
        judge = load_reward(case["reward"], device="cpu", files=case.get("files"))
    else:
        judge = compact
    reward = score_files(judge, [case["clip"]], [PROMPT])[0]
    samples, rate = soundfile.read(case["clip"], dtype="float32", always_2d=True)
    with torch.no_grad():
        again = float(judge(torch.from_numpy(samples.T.copy())[None], rate, [PROMPT]))
    right = math.isfinite(reward) and abs(reward - again) <= 1e-4 * max(1.0, abs(reward))
    return {"outcome": "score" if right else "wrong score", "detail": f"{reward} beside {again}"}


class Worker:
    """A process that judges, and is started anew when it dies."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if self.lines.get() is None:
            raise SystemExit("the worker could not start")
        self.peak = 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def judge(self, case: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What came of a case."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return {"outcome": "hang", "detail": f"over {seconds:g} s"}
        if line is None:
            code = self.process.wait()
            return {"outcome": "ran code" if code == RAN_CODE else "crash", "detail": f"exit code {code}"}
        result: dict[str, Any] = json.loads(line)
        grown, self.peak = result["peak"] - self.peak, result["peak"]
        if grown > MOST_MEMORY < result["peak"]:
            result |= {"outcome": "memory", "detail": f"{result['peak'] / 2**30:.1f} GiB; {result['detail']}"}
        return result

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    work()
