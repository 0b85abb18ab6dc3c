"""Charts: every pass is where it belongs, in colours that everybody tells apart, and files stay small."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from bestiary.core.errors import BestiaryError
from bestiary.plugins.dualpipe.gantt import COLOURS, IDLE, LATER, draw
from bestiary.plugins.dualpipe.schedules.actions import Kind
from bestiary.plugins.dualpipe.schedules.catalog import make
from bestiary.plugins.dualpipe.schedules.simulate import Times, simulate

SVG = "{http://www.w3.org/2000/svg}"


def drawn(tmp_path, name: str, ranks: int, microbatches: int, **how) -> tuple[dict[str, int], list[str]]:
    """Rectangles by colour, and texts."""
    path = tmp_path / "chart.svg"
    draw(simulate(make(name, ranks=ranks, microbatches=microbatches), Times(overlap=0.8)), path, **how)
    nodes = list(ElementTree.parse(path).iter())
    rectangles: dict[str, int] = {}
    for node in nodes:
        if node.tag == f"{SVG}path" and (colour := re.search(r"fill: (#\w+)", node.get("style", ""))):
            rectangles[colour[1]] = max(rectangles.get(colour[1], 0), node.get("d", "").count("M"))
    return rectangles, [node.text or "" for node in nodes if node.tag == f"{SVG}text"]


@pytest.mark.parametrize("name", ["1f1b", "zb1p", "zb-v", "dualpipe", "dualpipe-v"])
def test_every_pass_is_a_rectangle_in_its_colour(tmp_path, name):
    rectangles, texts = drawn(tmp_path, name, 4, 10)
    schedule = make(name, ranks=4, microbatches=10)
    passes = [
        part for row in schedule.rows for item in row for part in ((item,) if hasattr(item, "kind") else (item.forward, item.backward))
    ]
    for kind, colour in COLOURS.items():
        assert rectangles.get(colour, 0) == sum(part.kind == kind for part in passes)
    near = {rank: schedule.stages_of(rank)[0] for rank in range(4)}
    assert rectangles.get(LATER, 0) == sum(part.stage != near[schedule.rank_of[part.stage]] for part in passes)
    assert rectangles[IDLE] == 4
    numbers = [text for text in texts if text in {str(part.microbatch) for part in passes}]
    assert len(numbers) >= len(passes)


def test_a_chart_says_what_it_shows(tmp_path):
    _, texts = drawn(tmp_path, "dualpipe-v", 4, 10, unit="ms")
    assert "dualpipe-v: 4 ranks, 10 micro-batches, makespan 57.6 ms, bubble 6.5%, 51% of forward passes overlapped" in texts
    assert {"time, ms", "rank 0", "rank 3", "forward", "backward", "input gradients", "weight gradients", "idle"} <= set(texts)
    assert {"a pair, overlapped", "a later stage of the rank"} <= set(texts)
    _, texts = drawn(tmp_path, "1f1b", 4, 10)
    assert not {"a pair, overlapped", "a later stage of the rank", "input gradients"} & set(texts)


def test_numbers_that_nobody_could_read_are_left_out(tmp_path):
    rectangles, texts = drawn(tmp_path, "zb-v", 2, 200)
    assert rectangles[COLOURS[Kind.FORWARD]] == 800
    assert "199" not in texts and len(texts) < 40


def test_charts_are_small_and_the_same_every_time(tmp_path):
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        draw(simulate(make("dualpipe", ranks=8, microbatches=20)), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < 150_000


def test_a_png_shows_all_colours(tmp_path):
    path = tmp_path / "chart.png"
    draw(simulate(make("dualpipe-v", ranks=4, microbatches=8)), path)
    seen = {tuple(pixel) for pixel in (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (*COLOURS.values(), IDLE, LATER)} <= seen


def test_other_pictures_are_refused(tmp_path):
    with pytest.raises(BestiaryError, match=r"chart.pdf: pictures are .svg or .png"):
        draw(simulate(make("1f1b", ranks=2, microbatches=2)), tmp_path / "chart.pdf")
    assert not list(tmp_path.iterdir())
