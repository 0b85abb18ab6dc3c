"""Registries on disk: commits, branches, links, and pushes that are cut off or meet."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.registry import file_commit
from tests.registry.conftest import LLAMA, V3, fresh


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_and_revisions(tmp_path: Path, sharded: Path, checkpoint: Path) -> None:
    zoo = tmp_path / "zoo"
    first = bestiary.push(sharded, f"file:{zoo}")
    second = bestiary.push(checkpoint, f"file:{zoo}")
    branch = bestiary.push(sharded, f"file:{zoo}", revision="tries/one")
    assert (zoo / "refs/main").read_text() == second.commit and (zoo / "refs/tries/one").read_text() == branch.commit
    assert "model.safetensors.index.json" in second.removed and not first.removed
    links = [path for path in (zoo / "snapshots").rglob("*") if path.is_symlink()]
    assert links and all(not os.path.isabs(os.readlink(path)) and path.resolve().is_relative_to(zoo / "blobs") for path in links)
    for reference, folder in [(f"file:{zoo}@{first.commit}", sharded), (f"file:{zoo}", checkpoint), (f"file:{zoo}@tries/one", sharded)]:
        held = content(bestiary.pull(reference))
        held.pop("README.md")
        assert held == content(folder)
    moved = tmp_path / "elsewhere" / "zoo"
    shutil.copytree(zoo, moved, symlinks=True)
    shutil.rmtree(zoo)
    for a, b in zip(bestiary.load(f"file:{moved}").parameters(), bestiary.load(checkpoint).parameters(), strict=True):
        assert torch.equal(a, b)


def test_unchanged_makes_no_commit(tmp_path: Path) -> None:
    model, target = fresh(V3), f"file:{tmp_path}/zoo"
    first = bestiary.push(model, target, max_shard_size=20_000)
    before = content(tmp_path / "zoo")
    again = bestiary.push(model, target, max_shard_size=20_000)
    assert again.unchanged and again.commit == first.commit and content(tmp_path / "zoo") == before
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    third = bestiary.push(model, target, max_shard_size=20_000)
    assert not third.unchanged and third.commit != first.commit
    blobs = {path.name for path in (tmp_path / "zoo/blobs").iterdir()}
    assert len(blobs) == len({*before}) - len([n for n in before if n.startswith(("snapshots", "refs", "."))]) + 1, "one shard is new"


def test_cut_off_then_repeated(tmp_path: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = tmp_path / "zoo"
    first = bestiary.push(fresh(LLAMA), f"file:{zoo}")
    before, written, write = content(zoo), [], file_commit._write

    def failing(path: Path, data: Path | bytes) -> None:
        if len(written) == 3:
            path.with_name(f".{path.name}.part").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, data)

    monkeypatch.setattr(file_commit, "_write", failing)
    with pytest.raises(BestiaryError, match="the disk is full"):
        bestiary.push(sharded, f"file:{zoo}")
    assert bestiary.pull(f"file:{zoo}").name == first.commit
    assert all(content(zoo)[name] == data for name, data in before.items())
    monkeypatch.setattr(file_commit, "_write", write)
    kept = {path: path.stat().st_mtime_ns for path in written}
    second = bestiary.push(sharded, f"file:{zoo}")
    assert bestiary.pull(f"file:{zoo}").name == second.commit and not list((zoo / "blobs").glob(".*"))
    assert {path: path.stat().st_mtime_ns for path in written} == kept, "what was there is not written again"


def test_two_pushes_meet(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = tmp_path / "zoo"
    bestiary.push(checkpoint, f"file:{zoo}")
    with (zoo / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BestiaryError, match="another push to this registry is at work"):
            bestiary.push(fresh(LLAMA), f"file:{zoo}")
    target = file_commit.FileTarget(f"file:{zoo}", zoo, "main")
    other = bestiary.push(fresh(LLAMA), f"file:{zoo}")
    with pytest.raises(BestiaryError, match="someone else pushed to 'main' since this began"):
        target.commit({"config.json": b"{}"}, (), "late")
    assert (zoo / "refs/main").read_text() == other.commit


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"revision": "../main"}, "is no name for a revision"),
        ({"revision": "/etc/x"}, "is no name for a revision"),
        ({"pull_request": True}, "--pr: a registry on disk knows no such thing"),
        ({"private": True}, "--private: a registry on disk"),
    ],
)
def test_refused(tmp_path: Path, checkpoint: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(BestiaryError, match=says):
        bestiary.push(checkpoint, f"file:{tmp_path}/zoo", **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BestiaryError, match="files that are no registry"):
        bestiary.push(checkpoint, f"file:{checkpoint}")
    with pytest.raises(BestiaryError, match=r"Give organisation/name, or file:\./zoo"):
        bestiary.push(checkpoint, "./zoo")


def test_card_is_ours_until_someone_edits_it(tmp_path: Path, checkpoint: Path) -> None:
    target = f"file:{tmp_path}/zoo"
    bestiary.push(checkpoint, target)
    bestiary.push(checkpoint, target, license="mit")
    card = bestiary.pull(target) / "README.md"
    assert "license: mit" in card.read_text() and f'bestiary.load("{target}")' in card.read_text()
    (checkpoint / "README.md").write_text("# My own\n")
    bestiary.push(checkpoint, target)
    assert (bestiary.pull(target) / "README.md").read_text() == "# My own\n"
    (checkpoint / "README.md").unlink()
    assert bestiary.push(checkpoint, target, license="apache-2.0").unchanged
