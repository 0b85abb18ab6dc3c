"""The whole of DeepSeek-V3's repository as sparse files: 688.57 GB to look at, a few MB on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import bestiary
from bestiary.core.layout import Layout
from bestiary.core.manifest import Manifest
from bestiary.core.table import own_entries
from bestiary.registry.checkpoint import INDEX, open_checkpoint, weight_map
from bestiary.registry.coverage import uncovered
from bestiary.registry.hub_config import config_from_manifest
from bestiary.registry.indexed import from_index
from bestiary.registry.layout import Published, published
from bestiary.registry.load_rank import plan_ranks
from bestiary.registry.plan import Plan, make_plan

SHARDS = 163


def write_skeleton(manifest: Manifest, folder: Path) -> None:
    """A repository as published: files of about equal size, their headers, an index and a config; holes for data."""
    tensors = published(manifest)
    share = sum(tensor.nbytes for tensor in tensors) / SHARDS
    parts: list[list[Published]] = [[] for _ in range(SHARDS)]
    reached = 0
    for tensor in tensors:
        parts[min(int(reached / share), SHARDS - 1)].append(tensor)
        reached += tensor.nbytes
    table = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{SHARDS:06}.safetensors"
        header, offset = {}, 0
        for tensor in part:
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, offset + tensor.nbytes]}
            offset += tensor.nbytes
            table[tensor.name] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}, separators=(",", ":")))
    config = config_from_manifest(manifest).config
    assert config is not None
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("deepseek-v3")
    write_skeleton(bestiary.resolve("deepseek-v3"), folder)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def whole(skeleton: Path) -> tuple[Manifest, Plan]:
    manifest = bestiary.resolve(str(skeleton))
    return manifest, make_plan(manifest, open_checkpoint(skeleton))


def test_skeleton_is_the_published_repository(skeleton: Path) -> None:
    shards = list(skeleton.glob("*.safetensors"))
    tensors = open_checkpoint(skeleton).tensors
    assert (len(shards), len(tensors)) == (163, 91_991)
    assert sum(tensor.nbytes for tensor in tensors.values()) == 688_574_839_360
    assert sum(path.stat().st_blocks * 512 for path in skeleton.iterdir()) < 40e6


def test_index_alone_says_what_headers_say(skeleton: Path, whole: tuple[Manifest, Plan]) -> None:
    manifest, _ = whole
    from_headers = open_checkpoint(skeleton).tensors
    told = from_index(manifest, weight_map(skeleton / INDEX), skeleton).tensors
    assert {n: (t.file, t.dtype, t.shape, t.nbytes) for n, t in told.items()} == {
        n: (t.file, t.dtype, t.shape, t.nbytes) for n, t in from_headers.items()
    }


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        (Layout(), [0]),
        (Layout(dp=8, zero=3), range(8)),
        (Layout(dp=8, ep=8), range(8)),
        (Layout(pp=16, dp=4, ep=4), range(64)),
        (Layout(dp=64, zero=3), [0, 31, 63]),
        (Layout(dp=40, tp=8, ep=320 // 5), range(0, 320, 17)),
        (Layout(dp=320, zero=3), [0, 160, 319]),
    ],
    ids=str,
)
def test_every_rank_is_filled_exactly_once(whole: tuple[Manifest, Plan], layout: Layout, ranks: range) -> None:
    manifest, plan = whole
    held = 0
    for rank in plan_ranks(manifest, plan, layout, ranks):
        assert not uncovered(rank.reads, rank.regions)
        held += rank.held
    if len(ranks) == layout.gpus and layout.zero == 3:
        assert held == sum(entry.weight.numel * plan.dtypes[name].itemsize for name, entry in own_entries(manifest).items())
