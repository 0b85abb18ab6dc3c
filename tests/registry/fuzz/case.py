"""One hostile checkpoint: made, read in every way, and judged."""

from __future__ import annotations

import resource
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file

import bestiary
from bestiary.core.accounting import account
from bestiary.core.errors import BestiaryError
from bestiary.registry.checkpoint import INDEX, open_checkpoint, weight_map
from bestiary.registry.convert.convert import convert
from bestiary.registry.convert.options import Options
from bestiary.registry.indexed import from_index, holdings
from bestiary.registry.plan import make_plan
from bestiary.registry.record import manifest_of

from .mutate import TARGETS

SECONDS = 20
"""A case that takes longer hangs."""
MEMORY = 3 << 30
"""Bytes of address space that a case may add."""

V3 = {
    "schema": 1,
    "model": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 32},
    "block": {
        "attention": {"use": "mla", "q_lora_rank": 5, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4},
        "ffn": {
            "use": "moe", "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "intermediate_size": 6,
            "router": {"use": "sigmoid-group", "n_group": 2, "topk_group": 1},
        },
        "at": {"0": {"ffn": {"use": "dense", "intermediate_size": 7}}},
    },
    "precision": {"use": "fp32"},
    "objective": {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp"}},
}  # fmt: skip


def make_bases(root: Path) -> list[Path]:
    """Whole checkpoints: with `bestiary.json` in shards, with a config alone, and in FP8 blocks. A file outside that nobody may read."""
    model = bestiary.create_model(V3, dtype=torch.float32)
    shards, plain, fp8 = root / "shards", root / "plain", root / "fp8"
    bestiary.save(model, shards, max_shard_size=6_000)
    bestiary.save(model, plain)
    (plain / "bestiary.json").unlink()
    convert(plain, fp8, Options("fp8", (3, 4)))
    return [shards, plain, fp8]


def run_case(random: Random, root: Path, bases: list[Path], counts: Counter[str]) -> None:
    """Damages a copy of a base and reads it.

    Raises:
        AssertionError: something else happened than a `BestiaryError` or a load of exactly what the files hold.
    """
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(random.choice(bases), folder)
    kinds = [kind for kind, (pattern, _) in TARGETS.items() if any(folder.glob(pattern))]
    kind = random.choice(kinds)
    pattern, change = TARGETS[kind]
    change(random.choice(sorted(folder.glob(pattern))), random)
    before = _outside(root)
    outcome = "refused"
    try:
        with _guarded():
            outcome = _read(folder)
    except BestiaryError as error:
        assert str(error).strip(), "an error without words"
    assert _outside(root) == before, "something outside of the folder changed"
    counts[f"{kind}: {outcome}"] += 1


def _read(folder: Path) -> str:
    """Everything that reads a folder without and with its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (folder / INDEX).is_file():
            holdings(str(folder))
            from_index(bestiary.resolve(str(folder)), weight_map(folder / INDEX), folder)
        manifest = manifest_of(folder)
        account(manifest)
        checkpoint = open_checkpoint(folder)
        make_plan(manifest, checkpoint, stored_as=manifest)
        model = bestiary.load(folder, threads=1)
    _check(model, folder)
    return "loaded"


def _check(model: Any, folder: Path) -> None:
    """Every number that was taken is the one that safetensors itself finds under that name."""
    held = {name: tensor for path in {read.source.file for read in model.load_report.taken} for name, tensor in load_file(path).items()}
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for read in model.load_report.taken:
        found = state[read.target].detach()[read.region]
        stored = held[read.source.name]
        if read.op == "dequantise":
            scale = held[read.scale.name].float()
            for axis in (0, 1):
                scale = scale.repeat_interleave(read.block[axis], -2 + axis)
            stored = stored.float() * scale[..., : stored.shape[-2], : stored.shape[-1]]
        assert torch.equal(found, stored.to(found.dtype).view(found.shape)) or bool(stored.float().isnan().any()), read.source.name


def _outside(root: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns if path.is_file() else 0) for path in root.iterdir())


@contextmanager
def _guarded() -> Iterator[None]:
    """Ends a case that hangs, or that asks for more memory than any of these checkpoints needs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, old[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, old)
