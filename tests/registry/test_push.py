"""Pushing through the real client, in processes of its own, while things go wrong."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary.core.errors import BestiaryError
from tests.hub.faults import Cut, Race, Slow, Status
from tests.hub.hub import Hub
from tests.hub.server import TOKEN
from tests.registry.conftest import V3, edit_json, fresh

MODEL = """
import bestiary, torch
model = bestiary.load({folder!r})
print(model.push_to_hub("org/model", max_shard_size=20_000{options}))
"""
TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("org/model", dtype=torch.float32, experts_implementation="eager").eval()
with torch.no_grad():
    logits = model(torch.arange(40).reshape(2, 20)).logits
print(logits.double().sum().item(), logits.double().square().sum().item())
"""


def weights(hub: Hub, repo: str = "org/model", revision: str = "main") -> list[str]:
    return sorted(name for name in hub.files(repo, revision) if name.endswith(".safetensors"))


def test_folder_to_hub_and_back(hub: Hub, sharded: Path) -> None:
    (sharded / "tokenizer.json").write_text("{}")
    (sharded / "old.bin").write_bytes(b"pickle")
    (sharded / ".env").write_text("HF_TOKEN=hf_secret")
    done = hub.run("push", str(sharded), "org/model", "--private", "--license", "mit", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["commit"] == hub.head("org/model") and not told["unchanged"] and hub.store.repos["org/model"].private
    found = hub.files("org/model")
    sent = {path.name: path.read_bytes() for path in sharded.iterdir() if path.name not in ("old.bin", ".env")}
    assert {name: found[name] for name in sent} == sent
    assert set(found) == {*sent, "README.md"} == set(told["files"])
    assert len(hub.store.repos["org/model"].commits) == 2, "the one of its creation, and one for all files"
    back = hub.python("import bestiary; print(sum(p.double().sum().item() for p in bestiary.load('org/model').parameters()))")
    assert float(back) == sum(p.double().sum().item() for p in bestiary.load(sharded).parameters())
    again = hub.run("push", str(sharded), "org/model", "--license", "mit")
    assert again.returncode == 0 and "nothing to push" in again.stdout
    assert hub.head("org/model") == told["commit"]


def test_model_comes_back_in_transformers(hub: Hub, checkpoint: Path) -> None:
    url = hub.python(MODEL.format(folder=str(checkpoint), options=', license="mit", private=True')).strip()
    assert url == f"{hub.endpoint}/org/model/tree/{hub.head('org/model')}"
    assert len(weights(hub)) > 3
    model = bestiary.load(checkpoint)
    with torch.no_grad():
        logits = model(torch.arange(40).reshape(2, 20)).double()
    total, square = (float(word) for word in hub.python(TRANSFORMERS).split())
    assert total == pytest.approx(logits.sum().item(), abs=1e-3) and square == pytest.approx(logits.square().sum().item(), rel=1e-5)
    printed = hub.python("import bestiary; m = bestiary.HubModel.from_pretrained('org/model', revision='main'); print(m.load_report)")
    assert "tensors" in printed


def test_fewer_shards_replace_more(hub: Hub, sharded: Path, checkpoint: Path) -> None:
    hub.put("org/model", {"README.md": b"# Mine\n", "notes.txt": b"kept"})
    assert hub.run("push", str(sharded), "org/model").returncode == 0
    assert hub.files("org/model")["README.md"] == b"# Mine\n", "a card that someone wrote is kept"
    done = hub.run("push", str(checkpoint), "org/model", "--json")
    assert weights(hub) == ["model.safetensors"] and "model.safetensors.index.json" in json.loads(done.stdout)["removed"]
    assert hub.files("org/model")["notes.txt"] == b"kept"
    done = hub.run("push", str(sharded), "org/model", "--revision", "next")
    assert done.returncode == 0 and weights(hub) == ["model.safetensors"] and len(weights(hub, revision="next")) > 1


def test_pull_request(hub: Hub, checkpoint: Path) -> None:
    done = hub.run("push", str(checkpoint), "org/model", "--pr")
    assert done.returncode == 1 and "there is no such repository to open a pull request against" in done.stderr
    assert "org/model" not in hub.store.repos
    before = hub.put("org/model", {"README.md": b"# Mine\n"})
    done = hub.run("push", str(checkpoint), "org/model", "--pr", "--message", "Better weights")
    assert done.returncode == 0 and f"{hub.endpoint}/org/model/discussions/1" in done.stdout.replace("\n", ""), done.stderr
    assert hub.head("org/model") == before and weights(hub, revision="refs/pr/1") == ["model.safetensors"]
    assert hub.store.repos["org/model"].commit("refs/pr/1").title == "Better weights"  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("source", ["folder", "model"])
def test_killed_between_shards(hub: Hub, sharded: Path, source: str) -> None:
    before = hub.put("org/model", {"README.md": b"# Mine\n"})
    hub.fault("PUT", "^/lfs/", Slow(0.0), times=2)
    hub.fault("PUT", "^/lfs/", Slow(30.0), times=1)
    program = [] if source == "folder" else ["-c", MODEL.format(folder=str(sharded), options="")]
    process = hub.popen("push", str(sharded), "org/model") if source == "folder" else hub.start(*program)
    with process:
        until = time.monotonic() + 60
        while len(hub.asked("PUT", "/lfs/")) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    first = hub.asked("PUT", "/lfs/")
    assert len(first) == 3 and hub.head("org/model") == before and not weights(hub)
    if source == "folder":
        assert hub.run("push", str(sharded), "org/model").returncode == 0
    else:
        hub.python(program[1])
    assert len(weights(hub)) > 3
    resent = hub.asked("PUT", "/lfs/")[3:]
    assert not set(first[:2]) & set(resent), "what had arrived is not sent again"
    assert len(set(first[:2]) | set(resent)) == len(weights(hub))


def test_someone_else_commits(hub: Hub, checkpoint: Path) -> None:
    hub.put("org/model", {"README.md": b"# Mine\n"})
    hub.fault("POST", "/commit/", Race())
    done = hub.run("push", str(checkpoint), "org/model")
    assert done.returncode == 1 and "HTTP 412" in done.stderr and "someone else committed" in done.stderr
    assert not weights(hub)
    assert hub.run("push", str(checkpoint), "org/model").returncode == 0


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        ("/commit/", 401, "hf auth login"),
        ("/commit/", 403, "write access"),
        ("/commit/", 409, "another commit is being made"),
        ("/commit/", 413, "smaller shards"),
        ("/commit/", 429, "asked too often"),
        ("/commit/", 503, "Try again later"),
        ("/preupload/", 403, "write access"),
        ("repos/create", 401, "hf auth login"),
        ("repos/create", 403, "write access"),
    ],
)
def test_refusals(hub: Hub, checkpoint: Path, where: str, code: int, says: str) -> None:
    if "create" not in where:
        hub.put("org/model", {"README.md": b"# Mine\n"})
    hub.fault("POST", where, Status(code), times=9)
    done = hub.run("push", str(checkpoint), "org/model")
    assert done.returncode == 1 and f"HTTP {code}" in done.stderr and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert "org/model" not in hub.store.repos or not weights(hub)


def test_upload_that_breaks_off_is_repeated(hub: Hub, checkpoint: Path) -> None:
    hub.fault("PUT", "/lfs/", Cut(1000))
    hub.fault("PUT", "/lfs/", Status(503))
    done = hub.run("push", str(checkpoint), "org/model")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked("PUT", "/lfs/")) == 3


def test_private_and_public(hub: Hub, checkpoint: Path) -> None:
    hub.put("org/model", {"README.md": b"# Mine\n"})
    done = hub.run("push", str(checkpoint), "org/model", "--private")
    assert done.returncode == 1 and "this repository is public, and --private was given" in done.stderr
    assert not hub.asked("PUT", "/lfs/")


def test_licence_of_the_base(hub: Hub, checkpoint: Path) -> None:
    hub.put("deepseek-ai/base", {"README.md": b"---\nlicense: mit\n---\n"})
    assert hub.run("push", str(checkpoint), "org/model", "--base-model", "deepseek-ai/base").returncode == 0
    card = hub.files("org/model")["README.md"].decode()
    assert "license: mit" in card and "base_model: deepseek-ai/base" in card
    done = hub.run("push", str(checkpoint), "org/other", "--base-model", "deepseek-ai/nothing")
    assert done.returncode == 1 and "deepseek-ai/nothing" in done.stderr and "org/other" not in hub.store.repos


def test_nothing_is_written_of_the_token(hub: Hub, checkpoint: Path) -> None:
    assert hub.run("push", str(checkpoint), "org/model").returncode == 0
    assert hub.run("push", str(checkpoint), "file:zoo").returncode == 0
    for path in [*checkpoint.rglob("*"), *hub.folder.rglob("*")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_run_with_its_figures(hub: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bestiary.save(fresh(V3), run / "model")
    summary = {"status": "finished", "steps": 7, "tokens": 12_800, "bits_per_byte": 2.125, "versions": {"torch": "2.13.0"}, "device": "cpu"}
    (run / "summary.json").write_text(json.dumps(summary))
    bestiary.push(run, f"file:{tmp_path}/zoo")
    pushed = bestiary.pull(f"file:{tmp_path}/zoo")
    told = json.loads((pushed / "bestiary.json").read_text())
    assert told["figures"] == {key: value for key, value in summary.items() if key != "status"}
    card = (pushed / "README.md").read_text()
    assert "| bits per byte | 2.125 |" in card and "| tokens | 12,800 |" in card and "torch 2.13.0" in card
    (run / "model").rename(run / "elsewhere")
    with pytest.raises(BestiaryError, match="this run has no trained model"):
        bestiary.push(run, f"file:{tmp_path}/zoo")


def test_what_is_damaged_is_not_sent(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    shard = next(iter(sorted(sharded.glob("*.safetensors"))))
    shard.write_bytes(shard.read_bytes()[:-10])
    done = hub.run("push", str(sharded), "org/model")
    assert done.returncode == 1 and shard.name in done.stderr and not hub.requests
    for source, says in [(tmp_path / "nowhere", "there is no such folder"), (tmp_path, "neither bestiary.json nor config.json")]:
        with pytest.raises(BestiaryError, match=says):
            bestiary.push(source, "org/model")


def test_what_must_not_leave(checkpoint: Path, tmp_path: Path) -> None:
    target = f"file:{tmp_path}/zoo"
    (checkpoint / "notes.md").write_text(f"my token is hf_{'a' * 34}")
    with pytest.raises(BestiaryError, match=r"notes.md: it holds what looks like an access token"):
        bestiary.push(checkpoint, target)
    (checkpoint / "notes.md").unlink()
    (tmp_path / "secret.txt").write_text("secret")
    (checkpoint / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(BestiaryError, match=r"notes.txt: it is a link to .*secret.txt, outside of the folder"):
        bestiary.push(checkpoint, target)
    assert not (tmp_path / "zoo").exists()


def test_digest_is_checked(checkpoint: Path, tmp_path: Path) -> None:
    edit_json(checkpoint / "bestiary.json", lambda data: data.update(digest="0" * 64))
    with pytest.raises(BestiaryError, match="states 000000000000"):
        bestiary.push(checkpoint, f"file:{tmp_path}/zoo")
