"""The report: what it plays, what it leaves out, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from alignment import report
from alignment.interfaces import Candidate
from alignment.report import write_report
from alignment.results import summarize
from alignment.runs import RunDirectory

Render = Callable[..., str]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """render(pools, config) -> the HTML."""

    def make(pools: list[list[Candidate]], **config: Any) -> str:
        with RunDirectory(tmp_path / "run", "best_of_n", {}) as run:
            run.start({})
            return write_report(run, summarize(pools, config, {"total": 3725.0})).read_text()

    return make


def pool(name: str, rewards: list[float | None], paths: list[str | None] | None = None) -> list[Candidate]:
    paths = paths or [None] * len(rewards)
    return [
        Candidate(name, f"prompt {name}", k, k, reward, path, None if reward is not None else "<broken>")
        for k, (reward, path) in enumerate(zip(rewards, paths, strict=True))
    ]


def played(html: str) -> list[tuple[np.ndarray, int]]:
    sources = re.findall(r'src="data:audio/flac;base64,([^"]+)"', html)
    return [soundfile.read(io.BytesIO(base64.b64decode(source)), always_2d=True) for source in sources]


def check_html(html: str) -> None:
    """Every element is closed in its place, and nothing is fetched."""
    opened: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            if tag != "meta":
                opened.append(tag)
            self.handle_startendtag(tag, attributes)

        def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            for name, value in attributes:
                assert name not in ("src", "href", "xlink:href") or str(value).startswith(("data:", "#")), (name, value)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Checker().feed(html)
    assert opened == []


def test_is_whole_html_that_fetches_nothing(render: Render) -> None:
    html = render([pool("a", [0.5, 1.0]), pool("b", [0.1, None])])
    check_html(html)
    assert "1 h 02 min" in html
    assert "&lt;broken&gt;" in html and "<broken>" not in html


def test_clips_play_as_they_sound(render: Render, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wav = rng.uniform(-1, 1, size=(8_000, 2))
    soundfile.write(tmp_path / "a.wav", wav, 16_000, subtype="PCM_24")
    html = render([pool("a", [0.5, 1.0], [None, str(tmp_path / "a.wav")])])
    ((samples, rate),) = played(html)
    assert rate == 16_000 and np.abs(samples - wav).max() <= 2**-15


def test_clips_that_browsers_do_not_play_are_brought_down(render: Render, tmp_path: Path) -> None:
    time = np.arange(192_000) / 192_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "wide.wav", np.stack([tone] * 8, axis=1), 192_000)
    html = render([pool("a", [0.5], [str(tmp_path / "wide.wav")])])
    ((samples, rate),) = played(html)
    assert (rate, samples.shape) == (48_000, (48_000, 1))
    assert np.abs(samples[1000:-1000, 0] - tone[::4][1000:-1000]).max() < 1e-3


def test_long_clips_play_their_beginning(render: Render, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(8_000 * 90), 8_000)
    ((samples, rate),) = played(render([pool("a", [0.5], [str(tmp_path / "long.wav")])]))
    assert len(samples) / rate == report.MAX_CLIP_SECONDS == 60


def test_beyond_the_budget_clips_are_linked(render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, 8_000), 8_000)
    monkeypatch.setattr(report, "MAX_EMBEDDED_BYTES", 20_000)
    html = render([pool(name, [0.5], [str(tmp_path / "a.wav")]) for name in "ab"])
    assert len(played(html)) == 1 and html.count(f'src="{(tmp_path / "a.wav").as_uri()}"') == 1


def test_a_clip_that_is_gone_has_no_player(render: Render, tmp_path: Path) -> None:
    html = render([pool("a", [0.5, 0.7], [str(tmp_path / "none.wav"), None])])
    assert "<audio" not in html and "none.wav: no player" in html


def test_one_prompt_has_no_interval_and_one_candidate_no_curve(render: Render) -> None:
    html = render([pool("a", [0.5, 1.0, 0.7])])
    assert "one prompt: no interval" in html and "% interval 0" not in html
    assert "<svg" in html
    single = render([pool("a", [-0.5]), pool("b", [0.5])])
    assert "Reward against the number" not in single


def test_figure_follows_the_colours_of_the_page(render: Render) -> None:
    html = render([pool("a", [0.5, 1.0]), pool("b", [0.1, 0.3])])
    figure = html[html.index("<svg") : html.index("</svg>")]
    assert "var(--accent)" in figure and "var(--muted)" in figure
    assert set(re.findall(r"#[0-9a-f]{6}\b", figure)) == set()


def test_long_curves_are_tabled_by_powers_of_two(render: Render) -> None:
    rewards: list[float | None] = [k / 40 for k in range(40)]
    html = render([pool("a", rewards), pool("b", rewards)])
    table = html[html.index("Rewards by n") :]
    assert re.findall(r"<tr><td>(\d+)</td><td class=\"num\">", table) == ["1", "2", "4", "8", "16", "32", "40"]


def test_drafts_and_what_stands_beside_are_shown(render: Render) -> None:
    stages = [
        {
            "settings": {"duration": 8.0, "num_inference_steps": steps},
            "num_candidates": kept,
            "cost": float(steps),
            "nfe": float(steps),
            "whole_nfe": float(steps),
        }
        for steps, kept in ((4, 3), (16, 2))
    ]
    pools = [
        [
            Candidate(name, name, 0, 0, None, None, draft_rewards=[-1.0]),
            Candidate(name, name, 1, 1, 0.5, None, draft_rewards=[0.0], side={"held_out": 0.25, "clap_score": None}),
            Candidate(name, name, 2, 2, 0.7, None, draft_rewards=[0.1], side={"held_out": 0.125, "clap_score": None}),
        ]
        for name in "ab"
    ]
    side = {"held_out": {"name": "<other>", "licenses": {"other": "CC0-1.0"}}}
    html = render(pools, strategy={"name": "halving", "budget": None, "stages": stages}, side=side)
    check_html(html)
    drafts = html[html.index("<h2>Drafts</h2>") :]
    assert "1.000 (1.000 to 1.000)" in drafts and "held out (&lt;other&gt;)" in drafts and "0.1250" in drafts
    assert "clap score" in drafts and "failed</td>" in drafts and "log N" in drafts
    # 3 drafts and 2 clips for what 3 clips cost; the first was given up, so there is nothing to compare with
    assert "92 %" in html and "Gain" not in html and "First" not in html and html.count("<strong>Best</strong>") == 2
    full = render(pools[:1], side={})
    assert "92 %" not in full and "Drafts" not in full
