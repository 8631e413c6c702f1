"""Benchmarks go on after a kill, hear every backbone's own codec, and make a page to listen to."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMPACT = BENCHMARKS.parent / "recipes" / "compact"

FOLDERS = """
import dataclasses
from kept import work_folder

@dataclasses.dataclass
class Config:
    steps: int = 3
    output: str | None = None
    models: tuple[str, ...] = ("model",)

given = work_folder("some", Config(), Path("given"))
names = [work_folder("some", each, None).name for each in (Config(), Config(output="other.json"), Config(steps=4))]
Path("model").mkdir()
Path("model/config.json").write_text("{}")
names.append(work_folder("some", Config(), None).name)
Path("model/config.json").write_text("[]")
names.append(work_folder("some", Config(), None).name)
say([given.name, names])
"""

ONCE = """
from kept import once

def fail():
    raise KeyboardInterrupt

try:
    once(Path("a.json"), fail)
except KeyboardInterrupt:
    left = sorted(path.name for path in Path().glob("*"))
say([left, once(Path("a.json"), lambda: {"x": 1}), once(Path("a.json"), fail)])
"""

OVERHEARD = """
import torch
from ditto_parts import Overheard

def judge(wav, sample_rate, prompts):
    return wav.mean((1, 2))

def hear(steps, prompt="a"):  # the mean of the iterates, and twice that by the other
    noting = Overheard(judge, lambda *clip: 2 * judge(*clip), 3, Path("notes.jsonl"))
    values = [float(noting(torch.full((1, 1, 4), float(step)), 16_000, [prompt])) for step in steps]
    return values, noting.gains()

cut_off = hear([1, 5])
whole = hear([1, 2, 4, 9, 9])  # those after the third are of finished files
hear([0, 3, 3], "b")
say([cut_off, whole[0], whole[1]["mean"], hear([0])[1]["mean"]])
"""

AGREEMENT = """
from judge_agreement import compare_clips

def clip(prompt, reward, other):
    return json.dumps({"prompt_id": prompt, "reward": reward, "side": {"held_out_reward": other}})

def compared(*clips):
    Path("candidates.jsonl").write_text("\\n".join(clip(*each) for each in clips))
    figures = compare_clips(Path())
    return [round(value, 6) for value in figures.values()]

failed = ("a", None, None)
alike = compared(("a", 1.0, 0.0), ("a", 2.0, 3.0), failed, ("a", 3.0, 9.0))
# within a prompt of one mind, between prompts of opposite minds
between = compared(*[("ab"[k // 3], k, k - 9 * (k // 3)) for k in range(6)])
opposed = compared(*[("a", float(k), float(-k)) for k in range(3)])
say([alike, between, opposed])
"""

RELIABILITY = """
import numpy as np
from judge_reliability import bins, failures

margins = np.array([0.1, -0.1, 0.6, -3.0, 3.0, 0.0])
teacher = np.array([2.0, 2.0, -0.5, -1.0, 1.0, 1.0])
found = [[one.low, one.count, one.given, one.teacher, one.alike] for one in bins(margins, teacher, margins)]
genres = ["rock", *["pop, rock"] * 6]
rows = [{"name": str(i), "genre": genre, "judge": float(i), "teacher": 2.0 * i} for i, genre in enumerate(genres)]
say([found, *failures(rows, 2)])
"""


CODECS = """
import sys
import types
import torch
from alignment import load_backbone
from alignment.reconstruction import reconstruction_quality
from through_codec import BackboneCodec
from train_codec import evaluate

flow, musicgen = (BackboneCodec(load_backbone(path, device="cpu")) for path in sys.argv[1:])
wav = torch.randn(3, 8_000, generator=torch.Generator().manual_seed(0))
stage = evaluate(flow.vae, types.SimpleNamespace(wav=lambda index: wav[index]), "cpu", 3)
measured = reconstruction_quality(flow.through(wav, 8_000), wav)

loud = 100 * wav  # an untrained encoder gives almost silence the same code all the time
codes, latents = musicgen.encode(loud[:, None]), flow.encode(wav[:, None])
plain = musicgen.backbone.decode(codes)[:, 0, :8_000]
same = bool(torch.equal(musicgen.through(loud, 8_000), plain))
mixed = [codec.reordered(given, torch.Generator().manual_seed(0))
         for codec, given in ((musicgen, codes), (flow, latents))]
kept = [torch.equal(mixed[0].sort().values, codes.sort().values),
        torch.equal(mixed[1].flatten(1).sort().values, latents.flatten(1).sort().values)]
moved = [not torch.equal(mixed[0], codes), not torch.equal(mixed[1], latents)]
unlike = float((musicgen.shuffled(loud, 8_000) - plain.clamp(-1, 1)).abs().max())
try:
    BackboneCodec(types.SimpleNamespace(name="s", sample_rate=1, channels=1,
                                        pipeline=types.SimpleNamespace(vae=1, vocoder=1)))
except TypeError as error:
    refused = str(error)
say([stage, measured, same, kept, moved, unlike, list(musicgen.through(loud, 16_000).shape), refused])
"""

SPECTROGRAM = """
import torch
from listening_page import HIGHEST, LOWEST, spectrogram

found = []
for sample_rate, hertz in ((16_000, 1_000), (44_100, 12_000), (8_000, 110)):
    wav = 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(sample_rate) / sample_rate)
    level = spectrogram(wav, sample_rate)
    top = min(HIGHEST, sample_rate / 2)
    bands = level[:, 4:-4].argmax(0) / (len(level) - 1)  # the ends hear the tone begin and stop
    found.append([hertz, *(float(LOWEST * (top / LOWEST) ** band) for band in (bands.min(), bands.max())),
                  float(level.min()), float(level.max())])
say([found, float(spectrogram(torch.zeros(10), 16_000).max())])
"""


def started(command: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Python, with benchmarks and the stages of the compact models to be imported."""
    path = os.pathsep.join([str(BENCHMARKS), str(COMPACT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True,
    )  # fmt: skip


def told(program: str, folder: Path, *arguments: object) -> Any:
    """What a program that imports benchmarks says last."""
    begin = "import json\nfrom pathlib import Path\nsay = lambda value: print(json.dumps(value))\n"
    done = started(["-c", begin + program, *arguments], folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def approx(*values: float) -> list[Any]:
    return [pytest.approx(value) for value in values]


def test_a_folder_is_that_of_the_settings_wherever_the_figures_go(tmp_path: Path) -> None:
    given, (first, elsewhere, other, *trained) = told(FOLDERS, tmp_path)
    assert given == "given" and first == elsewhere != other
    assert len({first, *trained}) == 3  # a model in a directory changed


def test_what_was_measured_is_not_measured_again_and_a_stopped_measurement_leaves_nothing(tmp_path: Path) -> None:
    assert told(ONCE, tmp_path) == [[], {"x": 1}, {"x": 1}]


def test_an_overheard_judge_says_the_same_and_clips_that_were_cut_off_are_noted_anew(tmp_path: Path) -> None:
    cut_off, values, gains, both = told(OVERHEARD, tmp_path)
    assert cut_off == [[1.0, 5.0], None]
    assert values == [1.0, 2.0, 4.0, 9.0, 9.0]
    assert gains == [0.0, 2.0, 6.0] and both == [0.0, 4.0, 6.0]


def test_two_judges_agree_within_prompts_and_over_all_as_their_rewards_of_clips_do(tmp_path: Path) -> None:
    alike, between, opposed = told(AGREEMENT, tmp_path)
    # prompts, clips, Spearman over all, within prompts, same best, gain of the first's choice and of the second's own
    assert alike == [1, 3, 1, 1, 1, 5, 5]
    assert between == [2, 6, pytest.approx(-0.542857), 1, 1, 1, 1]
    assert opposed == [1, 3, -1, -1, 0, -1, 1]


def test_any_codec_is_heard_as_its_training_hears_it(
    backbone_directory: Path, musicgen_directory: Path, tmp_path: Path
) -> None:
    stage, measured, same, kept, moved, unlike, shape, refused = told(
        CODECS, tmp_path, backbone_directory, musicgen_directory
    )
    assert measured == pytest.approx(stage, rel=1e-4)
    assert same and shape == [3, 8_000]
    assert kept == [True, True] and moved == [True, True] and unlike > 1e-3
    assert refused == "s has no codec that hears waveforms"


def test_quality_of_a_backbone_that_writes_tokens(musicgen_directory: Path, tmp_path: Path) -> None:
    import numpy as np

    model = tmp_path / "model"
    shutil.copytree(musicgen_directory, model)
    own = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**own, "duration": 2.0}))
    composed = tmp_path / "composed" / "test"
    composed.mkdir(parents=True)
    renders = np.random.default_rng(0).normal(0, 3_000, (8, 32_000)).astype(np.int16)
    np.save(composed / "shard-0000.npy", renders)
    records = (BENCHMARKS / "prompts" / "quality.jsonl").read_text().splitlines()[:8]
    (composed / "shard-0000.jsonl").write_text("\n".join(records) + "\n")
    done = started(
        [BENCHMARKS / "backbone_quality.py", "--backbone", model, "--composed", composed.parent, "--quick", "--output",
         tmp_path / "quality.json"], tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["num_clips"] == 8 and found["real_time_factor"] > 0
    assert list(found["frechet_distance"]) == ["generated", "other renders", "shuffled codes", "white noise"]
    assert found["codec"]["num_clips"] == 8
    # an untrained codec: nothing of white noise comes back
    assert found["codec"]["stft"] > 0.5 and found["codec"]["si_sdr"] < -10
    assert f"SI-SDR {found['codec']['si_sdr']:.2f} dB" in done.stdout
    heard, returned = found["listener_on_renders"], found["listener_through_codec"]
    assert heard.keys() == returned.keys() == found["following"].keys()
    assert f"| {returned['mode']:.3f} | {heard['mode']:.3f} |" in done.stdout


def test_a_spectrogram_shows_a_tone_where_it_is(tmp_path: Path) -> None:
    found, silence = told(SPECTROGRAM, tmp_path)
    for hertz, lowest, highest, quietest, loudest in found:
        assert 0.94 < lowest / hertz <= highest / hertz < 1.06
        assert quietest == -70 and loudest == pytest.approx(0, abs=1e-4)
    assert silence == -70


def listen(folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    return started([BENCHMARKS / "listening_page.py", "--output-dir", folder / "page", *flags], folder)


def test_a_page_to_listen_to(backbone_directory: Path, musicgen_directory: Path, tmp_path: Path) -> None:
    from tunejury import load_audio, load_reward

    (tmp_path / "prompts.txt").write_text('calm <b>piano</b> & "drums"\nfast drums\nnever heard\n')
    flags = ["--backbones", backbone_directory, musicgen_directory, "--prompts", "prompts.txt", "--num-clips", 2]
    done = listen(tmp_path, *flags, "--seed", 7, "--output", "told.json")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page" / "listening.html").read_text()
    assert page.count("data:audio/flac;base64,") == 4 and page.count('aria-label="Spectrogram"') == 4
    assert page.count("data:image/png;base64,") == 4 and 'src="http' not in page and 'href="http' not in page
    assert "calm &lt;b&gt;piano&lt;/b&gt; &amp;" in page and "<b>piano" not in page and "never heard" not in page
    assert "top k" in page and "cc-by-nc-4.0" in page and "num inference steps" in page
    judge, found = load_reward("compact"), json.loads((tmp_path / "told.json").read_text())["backbones"]
    assert list(found) == [str(backbone_directory), str(musicgen_directory)]
    for backbone in found.values():
        for seed, row in enumerate(backbone["clips"], 7):
            wav, rate = load_audio(tmp_path / "page" / row["path"])
            reward = float(judge(wav[None], rate, [row["prompt"]]))
            assert row["seed"] == seed and row["reward"] == pytest.approx(reward, abs=1e-3)
            assert f"<b>{row['reward']:.3f}</b>".replace("-", "\N{MINUS SIGN}") in page
    refused = listen(tmp_path, *flags, "--seed", 8)  # other settings
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert (tmp_path / "page" / "listening.html").read_text() == page


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--backbones", "no-such-model"], "unknown backbone 'no-such-model'"),
        (["--num-clips", 0], "num_clips is 0"),
    ],
)
def test_a_page_that_cannot_be_made_is_refused_in_one_line(flags: list[object], named: str, tmp_path: Path) -> None:
    done = listen(tmp_path, *flags)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]
    assert not (tmp_path / "page").exists()


def test_reliability_counts_every_decided_pair_once_and_failures_are_named_worst_first(tmp_path: Path) -> None:
    def logistic(margin: float) -> float:
        return 1 / (1 + math.exp(-margin))

    found, genres, lines = told(RELIABILITY, tmp_path)
    assert found == [
        [0.0, 2, *approx(logistic(0.1), (logistic(2) + logistic(-2)) / 2, 0.5)],
        [0.5, 1, *approx(logistic(0.6), logistic(-0.5), 0.0)],
        [2.0, 2, *approx(logistic(3), logistic(1), 1.0)],
    ]  # a judge that gives no margin has made no choice
    assert [(row["genre"], row["tracks"]) for row in genres] == [("pop", 6), ("rock", 7)]
    assert genres[1]["bias"] == -3.0 and genres[1]["spearman"] == pytest.approx(1.0)
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| 6", "| 5"]
