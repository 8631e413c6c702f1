"""The environment of requirements/audiocraft*.txt beside our torch: it is built, and the adapter's tests pass in it.

pytest -m audiocraft        (needs a package index; some 200 MB)
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.audiocraft
@pytest.mark.skipif(find_spec("audiocraft") is not None, reason="it is this one")
def test_the_adapter_works_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """The stand-ins are for xformers, spacy and torchaudio, whose releases need another torch or a download more."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    shown = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # what is installed here stays as it is: the new environment sees it and adds to it
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), Path(__file__).parent / "stand_ins"]
    Path(shown.stdout.strip(), "beside.pth").write_text("".join(f"{path}\n" for path in paths))

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
        return done.stdout

    torch_before = run(python, "-c", "import torch; print(torch.__version__, torch.__file__)")
    run(python, "-m", "pip", "install", "--no-compile", "-r", "requirements/audiocraft.txt")
    run(python, "-m", "pip", "install", "--no-compile", "--no-deps", "-r", "requirements/audiocraft-no-deps.txt")
    assert run(python, "-c", "import torch; print(torch.__version__, torch.__file__)") == torch_before
    result = run(python, "-m", "pytest", "-m", "audiocraft", "-p", "no:cacheprovider", "-rs", "tests/audiocraft")
    assert re.search(r"\b[23]\d passed, 1 skipped\b", result) and "not installed here" not in result, result
