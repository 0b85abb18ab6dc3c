"""Tokens on disk: equal to those just made, found again without reading, and made again when damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bestiary import BestiaryError
from bestiary.lab.data import cache, files
from bestiary.lab.data.dataset import Data, open_data
from bestiary.lab.data.encoding import Encoding
from bestiary.lab.recipe import load_recipe


@pytest.fixture
def recipe(lab: Path) -> Path:
    """A recipe with a cache of its own, whose text is some time old."""
    for path in (lab / "text").iterdir():
        settle(path)
    path = lab / "recipe.toml"
    path.write_text(path.read_text().replace("[data]", '[data]\ncache = "tokens"'))
    return path


@pytest.fixture(autouse=True)
def old_changes(monkeypatch):
    """A test cannot set the time of a file's last change of status: leave it out, as if all were older."""

    def identity(self: files.File) -> tuple[str, str, int, int, int]:
        stat = self.path.stat()
        return self.name, str(self.path), stat.st_size, stat.st_mtime_ns, 0

    monkeypatch.setattr(files.File, "identity", property(identity))


def settle(path: Path, seconds: float = 100) -> None:
    """Gives a file the time of some while ago."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def opened(path: Path, *changes: str) -> Data:
    recipe = load_recipe(path, set=changes)
    return open_data(recipe, recipe.manifest())


def entries(recipe: Path) -> list[Path]:
    return [path.parent for path in (recipe.parent / "tokens").glob("*/*/header.json")]


@pytest.fixture
def counted(monkeypatch):
    """How often text is read and documents are tokenized."""
    calls = {"read": 0, "tokenized": 0}
    read, encode = files.read_file, Encoding.encode

    def counting_read(*args):
        calls["read"] += 1
        return read(*args)

    def counting_encode(*args):
        calls["tokenized"] += 1
        return encode(*args)

    monkeypatch.setattr("bestiary.lab.data.corpus.read_file", counting_read)
    monkeypatch.setattr(Encoding, "encode", counting_encode)
    return calls


def same(one: Data, two: Data) -> bool:
    batches = [(data.batch(at, 5), list(data.evaluation(3))) for data in (one, two) for at in (0, 7)]
    pairs = [(batches[0], batches[2]), (batches[1], batches[3])]
    train = all((a.input_ids == b.input_ids).all() and (a.targets == b.targets).all() for (a, _), (b, _) in pairs)
    held = all((a.targets == b.targets).all() and m == n for (_, x), (_, y) in pairs for (a, m), (b, n) in zip(x, y, strict=True))
    return bool(train and held and one.digest == two.digest and one.bytes_per_token == two.bytes_per_token)


def test_a_warm_cache_gives_the_same_batches_and_reads_nothing(recipe: Path, counted):
    (recipe.parent / "text" / "latin.txt").write_bytes(b"\xff")
    settle(recipe.parent / "text" / "latin.txt")
    cold = opened(recipe, "data.fim_rate=0.5")
    assert counted == {"read": 9, "tokenized": 1}
    warm = opened(recipe, "data.fim_rate=0.5")
    assert counted == {"read": 9, "tokenized": 1}
    assert same(cold, warm)
    assert warm.left_out == cold.left_out == [str(recipe.parent / "text" / "latin.txt")]
    shutil.rmtree(recipe.parent / "tokens")
    assert same(cold, opened(recipe, "data.fim_rate=0.5"))


def test_touched_files_are_read_again_and_not_tokenized_again(recipe: Path, counted):
    before = opened(recipe)
    settle(recipe.parent / "text" / "3.txt")
    after = opened(recipe)
    assert counted == {"read": 16, "tokenized": 1}
    assert same(before, after)
    opened(recipe)
    assert counted == {"read": 16, "tokenized": 1}


def test_a_change_of_equal_length_is_seen(recipe: Path):
    before = opened(recipe)
    path = recipe.parent / "text" / "3.txt"
    path.write_text(path.read_text().replace("3", "x"))
    settle(path, 50)
    after = opened(recipe)
    assert before.digest != after.digest and len(entries(recipe)) == 2


def test_files_that_were_just_written_are_not_trusted_by_their_times(recipe: Path, counted):
    """Two changes within the clock's step leave equal times."""
    path = recipe.parent / "text" / "3.txt"
    os.utime(path)
    stat = path.stat()
    before = opened(recipe)
    path.write_text(path.read_text().replace("3", "x"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(recipe).digest != before.digest


@pytest.mark.parametrize("change", ["data.fim_rate=0.1", "data.held_out=0.4", "model.eos_token_id=257", "model.vocab_size=70000"])
def test_what_changes_tokens_has_an_entry_of_its_own(recipe: Path, change: str):
    opened(recipe)
    opened(recipe, change)
    assert len(entries(recipe)) == 2


@pytest.mark.parametrize("change", ["data.sequence_length=16", "data.seed=3", "data.mask_documents=true", "model.vocab_size=265"])
def test_what_does_not_change_tokens_shares_them(recipe: Path, counted, change: str):
    opened(recipe)
    opened(recipe, change)
    assert len(entries(recipe)) == 1 and counted["tokenized"] == 1


def damage_length(entry: Path) -> None:
    with (entry / "train.bin").open("r+b") as file:
        file.truncate((entry / "train.bin").stat().st_size - 2)


def damage_header(entry: Path) -> None:
    header = json.loads((entry / "header.json").read_text())
    header["data"]["train_bytes"] += 1
    (entry / "header.json").write_text(json.dumps(header))


def damage_syntax(entry: Path) -> None:
    (entry / "header.json").write_text("{")


def damage_by_loss(entry: Path) -> None:
    (entry / "held_out.bin").unlink()


@pytest.mark.parametrize("damage", [damage_length, damage_header, damage_syntax, damage_by_loss])
def test_a_damaged_entry_is_made_again(recipe: Path, counted, damage):
    before = opened(recipe)
    kept = before.batch(0, 4).input_ids.tolist()
    (entry,) = entries(recipe)
    damage(entry)
    after = opened(recipe)
    assert counted["tokenized"] == 2
    assert after.batch(0, 4).input_ids.tolist() == kept and after.bytes_per_token == before.bytes_per_token
    assert entries(recipe) == [entry]
    assert sorted(path.name for path in entry.iterdir()) == ["header.json", "held_out.bin", "held_out_bytes.bin", "train.bin"]


def test_a_build_that_fails_leaves_nothing_behind(recipe: Path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_seal", full)
    with pytest.raises(BestiaryError, match=r"data\.cache: tokens cannot be kept in .*No space left on device"):
        opened(recipe)
    assert not entries(recipe) and not list((recipe.parent / "tokens").glob("*/*.building"))
    monkeypatch.undo()
    opened(recipe)


def test_what_a_killed_build_left_is_cleared(recipe: Path):
    opened(recipe)
    (entry,) = entries(recipe)
    record = next(path for path in entry.parent.glob("*.json"))
    shutil.rmtree(entry)
    left = record.with_suffix(".building")
    left.mkdir()
    (left / "train.spill").write_bytes(b"half")
    opened(recipe)
    assert entries(recipe) == [entry] and not left.exists()


def test_a_cache_that_cannot_be_written_is_named(recipe: Path):
    (recipe.parent / "tokens").write_text("a file")
    with pytest.raises(BestiaryError, match=r"tokens cannot be kept in .*tokens: Not a directory"):
        opened(recipe)


def test_where_tokens_are_kept(recipe: Path, monkeypatch, tmp_path: Path):
    options = load_recipe(recipe).data
    assert cache.cache_folder(options) == recipe.parent / "tokens"
    monkeypatch.setenv("BESTIARY_CACHE", "/somewhere")
    assert cache.cache_folder(options.model_copy(update={"cache": ""})) == Path("/somewhere/tokens")
    monkeypatch.delenv("BESTIARY_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder(options.model_copy(update={"cache": ""})) == tmp_path / ".cache" / "bestiary" / "tokens"


OPEN = """
import sys
from bestiary.lab.data.dataset import open_data
from bestiary.lab.recipe import load_recipe
recipe = load_recipe(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(open_data(recipe, recipe.manifest()).batch(5, 3).input_ids.sum().item())
"""


def test_processes_that_build_at_once_agree(recipe: Path):
    command = [sys.executable, "-c", OPEN, str(recipe)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        assert process.stdout and process.stdout.readline() == "ready\n"
    answers = {process.communicate("\n")[0] for process in started}
    assert answers == {f"{opened(recipe).batch(5, 3).input_ids.sum().item()}\n"}
    assert len(entries(recipe)) == 1 and not list((recipe.parent / "tokens").glob("*/*.building"))


def test_equal_text_of_two_folders_is_kept_once(recipe: Path, counted):
    """A name starts at the source's last folder, wherever that stands."""
    before = opened(recipe)
    copy = recipe.parent / "copy" / "text"
    shutil.copytree(recipe.parent / "text", copy)
    after = opened(recipe, "data.source=copy/text")
    assert same(before, after) and counted["tokenized"] == 1 and len(entries(recipe)) == 1


MEASURE = """
import sys
from pathlib import Path
from bestiary.lab.data.dataset import open_data
from bestiary.lab.recipe import load_recipe

def status(name):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith(name))

small, large = (load_recipe(path, set=["data.held_out=0.02"]) for path in sys.argv[1:])
manifest = small.manifest()
open_data(small, manifest).batch(0, 8)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
before = status("VmRSS")
data = open_data(large, manifest)
print(len(data.train.stream), status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peak of memory that can be reset")
def test_memory_does_not_grow_with_the_corpus(recipe: Path):
    """128 MB of text, in two files, are tokenized within 24 MB."""
    rng, folder = np.random.default_rng(0), recipe.parent / "large"
    folder.mkdir()
    letters = rng.integers(97, 123, 2**20, dtype=np.uint8).tobytes().decode()
    for part in range(2):
        with (folder / f"{part}.jsonl").open("w") as file:
            for line in range(1024):
                start = int(rng.integers(2**20 - 2**16))
                file.write(json.dumps({"text": f"{part} {line} {letters[start : start + 2**16]}"}) + "\n")
    other = recipe.with_name("large.toml")
    other.write_text(recipe.read_text().replace('"text"', '"large"'))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(recipe), str(other)], capture_output=True, text=True, check=True)
    tokens, growth = map(int, done.stdout.split())
    assert tokens > 120 * 2**20
    assert growth < 24 * 2**20
