"""Loading: dtypes, layouts, swaps, reports, threads, memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import bestiary
from bestiary.registry.checkpoint import Checkpoint
from bestiary.registry.fill import _bytes, _span
from bestiary.registry.header import Stored
from bestiary.registry.layout import published
from bestiary.registry.plan import make_plan

from .conftest import V3, edit_tensors, error_of, fresh, read_file

GQA = {"block.attention": {"use": "gqa", "head_dim": 8}}


def test_round_trip_is_bit_exact(sharded: Path, ids: Tensor) -> None:
    before, after = fresh(V3), bestiary.load(sharded)
    assert after.manifest.digest == before.manifest.digest and after.manifest.name == before.manifest.name
    assert not after.training
    state = after.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.state_dict().items())
    assert torch.equal(before(ids), after(ids))


def test_stored_dtypes_are_kept(tmp_path: Path) -> None:
    bestiary.save(fresh(V3), tmp_path / "m", dtype=torch.bfloat16)
    edit_tensors(tmp_path / "m", lambda tensors: tensors.update({"model.norm.weight": torch.ones(44)}))
    model = bestiary.load(tmp_path / "m")
    state = model.state_dict()
    assert state["model.norm.weight"].dtype == torch.float32
    assert state["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert state["model.layers.1.mlp.gate.weight"].dtype == torch.bfloat16
    assert model.model.compute_dtype == torch.bfloat16
    assert {read.op for read in model.load_report.taken} == {"copy"}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
def test_casts_round_once(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    before = fresh(V3)
    bestiary.save(before, tmp_path / "m", dtype=stored)
    model = bestiary.load(tmp_path / "m", dtype=wanted)
    name = "model.layers.1.mlp.experts.gate_up_proj.weight"
    assert torch.equal(model.state_dict()[name], before.state_dict()[name].to(stored).to(wanted))
    assert model.state_dict()["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


def test_packed_experts_are_accepted(checkpoint: Path) -> None:
    before = bestiary.load(checkpoint).state_dict()

    def pack(tensors: dict[str, Tensor]) -> None:
        for layer in (1, 2, 3):
            ours = f"model.layers.{layer}.mlp.experts." if layer < 3 else "objectives.mtp.layers.0.block.mlp.experts."
            for name in [name for name in tensors if f"layers.{layer}.mlp.experts." in name]:
                tensors.pop(name)
            for part in ("gate_up_proj", "down_proj"):
                tensors[f"model.layers.{layer}.mlp.experts.{part}"] = before[f"{ours}{part}.weight"]

    edit_tensors(checkpoint, pack)
    after = bestiary.load(checkpoint).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_half_packed_experts_are_refused(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda t: t.update({"model.layers.1.mlp.experts.down_proj": torch.zeros(6, 44, 18)}))
    assert "model.layers.1.mlp.experts" in error_of(lambda: bestiary.load(checkpoint))


def test_old_rotary_buffers_are_skipped_and_listed(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(3)}))
    (skipped,) = bestiary.load(checkpoint).load_report.skipped
    assert skipped.source.name == name and "follows from the config" in skipped.why


def test_report_accounts_for_every_tensor(checkpoint: Path) -> None:
    report = bestiary.load(checkpoint).load_report
    stored = read_file(checkpoint / "model.safetensors")
    duplicates = {copy.name: original for copy, original in report.duplicates}
    assert duplicates == {
        "model.layers.3.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight": "lm_head.weight",
    }
    assert {read.source.name for read in report.taken} | duplicates.keys() == stored.keys()
    assert report.nbytes == sum(tensor.nbytes for name, tensor in stored.items() if name not in duplicates)
    assert f"{len(report.taken)} tensors" in str(report) and "model.layers.3.embed_tokens.weight = " in str(report)


def test_prediction_weights_are_asked_for_by_name(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.3." in name])
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "objective.mtp" in message and 'set={"objective.mtp": False}' in message and "init=('objective.mtp',)" in message
    assert not bestiary.load(checkpoint, set={"objective.mtp": False}).objectives
    model = bestiary.load(checkpoint, init=["objective.mtp"])
    assert all(name.startswith("objectives.mtp.") for name in model.load_report.initialised)


def test_prediction_block_left_out_is_listed(checkpoint: Path) -> None:
    report = bestiary.load(checkpoint, set={"objective.mtp": False}).load_report
    assert len(report.skipped) == sum(".layers.3." in name for name in read_file(checkpoint / "model.safetensors"))
    assert all("left out, as `set` asks" in skip.why for skip in report.skipped)


def test_swapped_attention_needs_to_be_named(checkpoint: Path, ids: Tensor) -> None:
    message = error_of(lambda: bestiary.load(checkpoint, set=GQA))
    assert "k_proj" in message and "init=('block.attention',)" in message
    model = bestiary.load(checkpoint, set=GQA, init=("block.attention",), seed=5)
    report = model.load_report
    assert len(report.initialised) == 4 * 4 and all(".self_attn." in name for name in report.initialised)
    assert torch.isfinite(model(ids)).all()
    kept = bestiary.load(checkpoint).state_dict()["model.layers.1.mlp.experts.down_proj.weight"]
    assert torch.equal(model.state_dict()["model.layers.1.mlp.experts.down_proj.weight"], kept)
    same = bestiary.load(checkpoint, set=GQA, init=("block.attention",), seed=5)
    assert torch.equal(same(ids), model(ids))


def test_init_by_layers_and_patterns(checkpoint: Path) -> None:
    initialised = bestiary.load(checkpoint, init=['block.at."0:1".ffn', "*.q_a_layernorm.weight"]).load_report.initialised
    assert "model.layers.0.mlp.down_proj.weight" in initialised and "model.layers.2.self_attn.q_a_layernorm.weight" in initialised
    assert len(initialised) == 3 + 4


@pytest.mark.parametrize("selector", ["block.atention", "objective.mpt", "*.no_such.weight", 'block.at."7".ffn'])
def test_init_that_matches_nothing(checkpoint: Path, selector: str) -> None:
    assert selector in error_of(lambda: bestiary.load(checkpoint, init=[selector]))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_progress(checkpoint: Path, threads: int, ids: Tensor) -> None:
    model = bestiary.load(checkpoint, threads=threads, progress=True)
    assert torch.equal(model(ids), fresh(V3)(ids))


def test_file_that_shrinks_between_plan_and_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.registry import load as module

    fill = module._fill

    def cut(*args: object) -> object:
        os.truncate(checkpoint / "model.safetensors", 30_000)
        return fill(*args)

    monkeypatch.setattr(module, "_fill", cut)
    assert "the file ends inside of tensor" in error_of(lambda: bestiary.load(checkpoint))


def test_671b_is_planned_from_headers_alone() -> None:
    manifest = bestiary.resolve("deepseek-v3")
    tensors = {t.name: Stored(Path("x"), t.name, t.dtype, t.shape, 0, t.nbytes) for t in published(manifest)}
    plan = make_plan(manifest, Checkpoint(Path(), tensors))
    assert len(plan.duplicates) == 2 and not plan.skipped and not plan.initialised
    copies = sum(copy.nbytes for copy, _ in plan.duplicates)
    assert plan.nbytes == 688_574_839_360 - copies
    assert plan.compute_dtype == torch.bfloat16
    assert plan.dtypes["model.layers.60.mlp.gate.e_score_correction_bias"] == torch.float32


PROBE = """
import json, sys, threading, time, torch, bestiary
bestiary.create_model("deepseek-v3-nano", device="meta")
def anon():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
warm = bestiary.load(sys.argv[2])
before, peak, done = anon(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anon())
        time.sleep(0.0005)
thread = threading.Thread(target=watch); thread.start()
model = bestiary.load(sys.argv[1], dtype=getattr(torch, sys.argv[3]), threads=2)
done = True; thread.join()
size = sum(t.nbytes for t in model.state_dict().values())
print(json.dumps([max(peak, anon()) - before, size]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"], ids=["as-stored", "cast"])
def test_memory_is_the_parameters_and_small_buffers(dtype: str, tmp_path: Path, checkpoint: Path) -> None:
    """As stored nothing is buffered; a cast goes through 8 MB a thread, less than the largest tensor of 25 MB."""
    changes = {"model.vocab_size": 24576, "block.ffn.n_routed_experts": 32}
    bestiary.save(bestiary.create_model("deepseek-v3-mini", set=changes, dtype=torch.bfloat16), tmp_path / "m")
    out = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path / "m"), str(checkpoint), dtype], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    peak, size = json.loads(out.stdout.splitlines()[-1])
    assert peak < size + (12 << 20 if dtype == "bfloat16" else 32 << 20), f"{peak:,} over {size:,}"


def test_head_in_a_model_without_one_is_left_out_by_set(checkpoint: Path) -> None:
    message = error_of(lambda: bestiary.load(checkpoint, set={"model.tie_word_embeddings": True}))
    assert "lm_head.weight differs" in message


def test_tensors_in_two_files_and_one_index(checkpoint: Path, ids: Tensor) -> None:
    tensors = read_file(checkpoint / "model.safetensors")
    expected = bestiary.load(checkpoint)(ids)
    (checkpoint / "model.safetensors").unlink()
    index = {}
    for number in range(2):
        part = {name: tensor for position, (name, tensor) in enumerate(tensors.items()) if position % 2 == number}
        save_file(part, checkpoint / f"part-{number}.safetensors")
        index |= dict.fromkeys(part, f"part-{number}.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(bestiary.load(checkpoint)(ids), expected)


def test_hub_id_without_a_network() -> None:
    assert "the Hub cannot be reached" in error_of(lambda: bestiary.load("org/never-fetched"))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_the_bytes_of_a_region_are_those_that_indexing_gives(shape, data):
    parameter = torch.arange(math.prod(shape), dtype=torch.int16).reshape(shape)
    leading = data.draw(st.integers(0, len(shape) - 1))
    region = [data.draw(st.integers(0, size - 1)) for size in shape[:leading]]
    if data.draw(st.booleans()):
        region.append(slice(*sorted(data.draw(st.lists(st.integers(0, shape[leading]), min_size=2, max_size=2)))))
    span = _span(parameter, tuple(region))
    assert span is not None
    assert _bytes(parameter)[span.start : span.stop].tobytes() == _bytes(parameter[tuple(region)].contiguous()).tobytes()


def test_a_region_in_several_pieces_has_no_span():
    assert _span(torch.empty(4, 6), (slice(0, 2), slice(0, 3))) is None
    assert _span(torch.empty(4, 6), (slice(0, 4, 2),)) is None


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16], ids=str)
def test_mapped_files_give_the_same(sharded: Path, tmp_path: Path, dtype: torch.dtype | None) -> None:
    from .test_fp8 import quantised

    quantised(tmp_path / "fp8", V3, (16, 16))
    for folder in (sharded, tmp_path / "fp8"):
        a, b = (bestiary.load(folder, dtype=dtype, reader=reader, threads=3).state_dict() for reader in ("pread", "mmap"))
        assert all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()
    with pytest.raises(bestiary.BestiaryError, match="Known: pread, mmap"):
        bestiary.load(sharded, reader="carrier pigeon")  # pyright: ignore[reportArgumentType]
