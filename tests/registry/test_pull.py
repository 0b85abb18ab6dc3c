"""Pulling through the real client, in processes of its own, while things go wrong."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import bestiary
from bestiary.core.errors import BestiaryError
from tests.hub.faults import Cut, Flipped, Shorter, Slow, Status
from tests.hub.hub import Hub
from tests.registry.conftest import edit_json

LOAD = "import bestiary; model = bestiary.load({!r}); print(sum(p.double().sum().item() for p in model.parameters()))"


@pytest.fixture
def stocked(hub: Hub, sharded: Path) -> Hub:
    """A Hub with a sharded model, and files that are never fetched."""
    hub.put_folder("org/tiny", sharded)
    hub.put("org/tiny", {"tokenizer.json": b"{}", "README.md": b"# Tiny", "modeling_tiny.py": b"raise SystemExit", "extra/old.bin": b"x"})
    hub.put("org/tiny", {"pytorch_model.bin": b"pickle"})
    return hub


def total(folder: Path) -> float:
    return sum(p.double().sum().item() for p in bestiary.load(folder).parameters())


def test_pull_and_load(stocked: Hub, sharded: Path) -> None:
    done = stocked.run("pull", "org/tiny", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    shards = sorted(path.name for path in sharded.iterdir())
    assert told["files"] == sorted([*shards, "tokenizer.json", "README.md"])
    assert Path(told["folder"]).name == stocked.head("org/tiny")
    before = len(stocked.asked("GET", "resolve"))
    assert float(stocked.python(LOAD.format("org/tiny"))) == total(sharded)
    assert len(stocked.asked("GET", "resolve")) == before, "everything was in the cache"


def test_revision_is_resolved_once(stocked: Hub, sharded: Path) -> None:
    first = stocked.head("org/tiny")
    stocked.put("org/tiny", {"config.json": b"{}", "bestiary.json": b"{}"})
    assert float(stocked.python(LOAD.format(f"org/tiny@{first}"))) == total(sharded)
    assert stocked.run("show", "org/tiny").returncode == 1, "the new commit has no manifest"
    done = stocked.run("pull", "org/tiny@nowhere")
    assert done.returncode == 1 and "there is no such revision" in done.stderr


def test_only_a_part(stocked: Hub, sharded: Path) -> None:
    done = stocked.run("pull", "org/tiny", "--only", 'block.at."0:1"', "--to", "part")
    assert done.returncode == 0, done.stderr
    table = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in table.items() if name.startswith("model.layers.0.")}
    found = {path.name for path in (stocked.folder / "part").glob("*.safetensors")}
    assert found == needed and len(needed) < len(set(table.values()))
    assert not [r for r in stocked.asked("GET", "resolve") if r.endswith(".safetensors") and r.rpartition("/")[2] not in needed]
    done = stocked.run("pull", "org/tiny", "--only", "block.attentoin")
    assert done.returncode == 1 and "--only: no parameter belongs to 'block.attentoin'" in done.stderr


@pytest.mark.parametrize("single", [False, True])
def test_byte_ranges(hub: Hub, sharded: Path, checkpoint: Path, single: bool) -> None:
    source = checkpoint if single else sharded
    hub.put_folder("org/tiny", source)
    command = ("pull", "org/tiny", "--only", "*.q_a_proj.weight", "--only", "model.norm.weight", "--ranges", "--to", "part")
    done = hub.run(*command)
    assert done.returncode == 0, done.stderr
    names = {f"model.layers.{i}.self_attn.q_a_proj.weight" for i in range(4)} | {"model.norm.weight"}
    whole = bestiary.load(source).state_dict()
    found = {}
    for path in (hub.folder / "part").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == names
    assert all(torch.equal(found[name], whole[name]) for name in names if name in whole)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in (hub.folder / "part").glob("*.safetensors")) < size / 5
    asked = len(hub.asked("GET", "resolve"))
    assert (
        hub.run("pull", "org/tiny", "--only", "*.q_a_proj.weight", "--only", "model.norm.weight", "--ranges", "--to", "part").returncode
        == 0
    )
    again = [request for request in hub.asked("GET", "resolve")[asked:] if request.endswith(".safetensors")]
    assert len(again) == 2 * len(list((hub.folder / "part").glob("*.safetensors"))), "headers alone are read again"


def test_ranges_need_a_folder(stocked: Hub) -> None:
    done = stocked.run("pull", "org/tiny", "--ranges")
    assert done.returncode == 1 and "--to FOLDER" in done.stderr


def test_what_one_rank_needs(stocked: Hub, sharded: Path) -> None:
    done = stocked.run("pull", "org/tiny", "--rank", "0", "--of", "3", "--layout", "pp=3", "--json")
    assert done.returncode == 0, done.stderr
    table = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in table.items() if name.startswith(("model.layers.0.", "model.embed_tokens."))}
    assert {name for name in json.loads(done.stdout)["files"] if name.endswith(".safetensors")} == needed | set()
    done = stocked.run("pull", "org/tiny", "--of", "3")
    assert done.returncode == 1 and "Add --rank" in done.stderr


def test_killed_and_repeated(stocked: Hub, sharded: Path) -> None:
    stocked.fault("GET", "resolve/.*00003-of", Slow(1.0, 4096), times=9)
    with stocked.popen("pull", "org/tiny") as process:
        deadline = time.monotonic() + 60
        while len(list((stocked.folder / "hf-home").rglob("snapshots/*/*.safetensors"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    stocked.faults.clear()
    offline = stocked.run("pull", "org/tiny", "--offline")
    assert offline.returncode == 1 and "not in the cache" in offline.stderr
    asked = len(stocked.requests)
    assert stocked.run("pull", "org/tiny").returncode == 0
    again = [r for r in stocked.requests[asked:] if r.startswith("GET") and r.endswith(".safetensors")]
    assert 0 < len(again) < len(list(sharded.glob("*.safetensors")))
    assert float(stocked.python(LOAD.format("org/tiny"), env={"HF_HUB_OFFLINE": "1"})) == total(sharded)


def test_offline_after_a_pull_and_before(stocked: Hub) -> None:
    before = stocked.run("pull", "org/tiny", "--offline")
    assert before.returncode == 1 and "not in the local cache" in before.stderr
    assert stocked.run("pull", "org/tiny").returncode == 0
    asked = len(stocked.requests)
    assert stocked.run("pull", "org/tiny", "--offline").returncode == 0
    assert len(stocked.requests) == asked


@pytest.mark.parametrize(
    ("fault", "method", "pattern", "told"),
    [
        (Cut(1000), "GET", "resolve/.*00002-of", None),
        (Status(429, {"Retry-After": "0"}), "GET", "api/models/org/tiny$", None),
        (Status(503), "GET", "api/models/org/tiny/tree", None),
        (Status(403), "GET", "api/models/org/tiny$", "your token may not do this"),
        (Status(401), "GET", "api/models/org/tiny$", "does not accept your token"),
        (Status(403, {"X-Error-Code": "GatedRepo"}), "GET", "api/models/org/tiny$", "accept its terms"),
    ],
    ids=str,
)
def test_faults(stocked: Hub, sharded: Path, fault: object, method: str, pattern: str, told: str | None) -> None:
    stocked.fault(method, pattern, fault)  # type: ignore[arg-type]
    done = stocked.run("pull", "org/tiny", "--to", "here")
    if told is None:
        assert done.returncode == 0, done.stderr
        assert total(stocked.folder / "here") == total(sharded)
    else:
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr


def test_hub_that_stays_down(stocked: Hub) -> None:
    stocked.fault("GET", "api/models/org/tiny$", Status(503), times=99)
    done = stocked.run("pull", "org/tiny")
    assert done.returncode == 1 and "trouble of its own (HTTP 503)" in done.stderr and "Traceback" not in done.stderr


def test_wrong_size_and_wrong_content(stocked: Hub) -> None:
    stocked.fault("GET", "resolve/.*00001-of", Shorter(), times=9)
    done = stocked.run("pull", "org/tiny", "--to", "here")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert not list((stocked.folder / "here").glob("*00001-of*"))
    stocked.faults.clear()
    stocked.fault("GET", "resolve/.*00001-of", Flipped())
    assert stocked.run("pull", "org/tiny", "--to", "here").returncode == 0


def test_repositories_that_cannot_be_had(hub: Hub, sharded: Path) -> None:
    hub.put("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.put_folder("org/secret", sharded, private=True)
    for arguments, told in [
        (("org/nowhere",), "nothing of this name"),
        (("org/pickled",), "pickle files"),
        (("./nowhere",), "There is no folder"),
        (("not a name/x",), "There is no folder"),
    ]:
        done = hub.run("pull", *arguments)
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr, arguments
    done = hub.run("pull", "org/secret", env={"HF_TOKEN": ""})
    assert done.returncode == 1 and "Hub refuses" in done.stderr
    assert hub.run("pull", "org/secret").returncode == 0


def test_folder_and_copy_of_it(sharded: Path, tmp_path: Path) -> None:
    assert bestiary.pull(sharded) == sharded
    to = bestiary.pull(sharded, only=["block.at.1:2"], to=tmp_path / "part")
    assert {p.name for p in to.glob("*.safetensors")} < {p.name for p in sharded.glob("*.safetensors")}


def test_plugins_are_checked_before_weights_are_fetched(hub: Hub, sharded: Path) -> None:
    edit_json(sharded / "bestiary.json", lambda record: record["distributions"].update({"bestiary-hyper": "1.2"}))
    hub.put_folder("org/tiny", sharded)
    done = hub.run("pull", "org/tiny")
    assert done.returncode == 1 and "pip install bestiary-hyper==1.2" in done.stderr
    assert not [request for request in hub.asked("GET", "resolve") if request.endswith(".safetensors")]


def test_show_and_list(stocked: Hub, sharded: Path) -> None:
    shown = json.loads(stocked.run("show", "org/tiny", "--json").stdout)
    table = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    assert shown["stored"]["tensors"] == len(table) and shown["stored"]["commit"] == stocked.head("org/tiny")
    assert shown["stored"]["nbytes"] == sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    assert not [request for request in stocked.asked("GET", "resolve") if request.endswith(".safetensors")]
    assert "org/tiny" in stocked.run("list", "--hub", "tiny").stdout
    assert json.loads(stocked.run("list", "--hub", "huge", "--json").stdout) == []
    planned = json.loads(stocked.run("plan", "org/tiny", "--of", "2", "--json").stdout)
    assert [row["rank"] for row in planned["ranks"]] == [0, 1]
    assert "tensor" in stocked.run("plan", "org/tiny", "--of", "2", "--rank", "1").stdout


def test_hub_names_that_are_none() -> None:
    for name in ("org/", "/x", "a/b/c", "org/x@"):
        with pytest.raises(BestiaryError):
            bestiary.pull(name)
