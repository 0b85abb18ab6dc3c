"""A checkpoint is verified against what is stated of it, and everything that is wrong is said at once."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import bestiary
from bestiary.registry.verify import verify
from tests.hub.faults import Flipped
from tests.hub.hub import Hub

from .conftest import V3, edit_tensors
from .test_fp8 import quantised


def test_of_the_hub(hub: Hub, sharded: Path) -> None:
    hub.put_folder("org/tiny", sharded)
    done = hub.run("verify", "org/tiny", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["checksums"] == len(list(sharded.iterdir())), done.stderr
    name = sorted(path.name for path in sharded.glob("*.safetensors"))[1]
    hub.put_folder("org/flipped", sharded)
    hub.fault("GET", f"flipped/resolve/.*/{name}", Flipped())
    done = hub.run("verify", "org/flipped")
    assert done.returncode == 1 and name in done.stderr and "it was damaged or edited" in done.stderr.replace("\n", " ")


def test_of_a_registry(checkpoint: Path, tmp_path: Path) -> None:
    reference = f"file:{tmp_path}/zoo"
    bestiary.push(checkpoint, reference)
    folder = bestiary.pull(reference)
    report = verify(reference, values=True)
    assert not report.problems and report.checksums == len(list(folder.iterdir())) and report.tensors > 50
    blob = (folder / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    (problem,) = verify(reference).problems
    assert "model.safetensors" in problem.where and "damaged or edited" in problem.fact


def test_of_a_folder(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    assert not verify(tmp_path / "fp8", values=True).problems
    scale, copy = "model.layers.0.self_attn.o_proj.weight_scale_inv", "model.layers.3.shared_head.head.weight"

    def damage(held: dict[str, torch.Tensor]) -> None:
        held[scale][0, 0] = 0
        held[copy][3, 3] += 1
        held["model.norm.weight"][:2] = float("nan")

    edit_tensors(tmp_path / "fp8", damage)
    facts = " ".join(str(problem) for problem in verify(tmp_path / "fp8", values=True).problems)
    assert f"{scale}: 1 of 9 scales are zero" in facts and f"{copy} differs from lm_head.weight" in facts
    assert "model.norm.weight: 2 of its numbers are not finite" in facts
    assert "of its numbers" not in " ".join(str(problem) for problem in verify(tmp_path / "fp8").problems)
    edit_tensors(tmp_path / "fp8", lambda held: held.pop("model.norm.weight"))
    assert "model.norm.weight" in str(verify(tmp_path / "fp8").problems[0])
