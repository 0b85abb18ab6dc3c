"""Conversions are exact where they can be, keep what is done, and never leave half of anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bestiary
from bestiary.core.blocks import quantise_blocks
from bestiary.core.table import entries
from bestiary.registry.convert.convert import convert
from bestiary.registry.convert.names import THERE, to_deepseek, to_hub
from bestiary.registry.convert.options import Options
from bestiary.registry.layout import QUANTISED

from .conftest import LLAMA, V3, edit_json, edit_tensors, error_of, fresh, read_file
from .test_fp8 import quantised

RUN = """
import sys, os, resource, signal
from bestiary.registry.convert import convert as c
from bestiary.registry.convert.options import Options
{before}
print(c.convert(sys.argv[1], sys.argv[2], Options({options})))
"""


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in read_file(path).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    equal = (torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) and a[n].dtype == b[n].dtype for n in a)
    return a.keys() == b.keys() and all(equal)


def run(source: Path, target: Path, options: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    code = RUN.format(before=before, options=options)
    return subprocess.run([sys.executable, "-c", code, str(source), str(target)], capture_output=True, text=True, timeout=120)


@pytest.fixture(params=[(16, 16), (7, 9), (128, 128)], ids=str)
def fp8(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    quantised(tmp_path / "fp8", V3, request.param, shards=2)
    return tmp_path / "fp8"


def test_fp8_to_bf16_and_fp32_is_what_load_makes(fp8: Path, tmp_path: Path) -> None:
    expected = bestiary.load(fp8).state_dict()
    convert(fp8, tmp_path / "bf16", Options("bf16"))
    found = bestiary.load(tmp_path / "bf16")
    assert same(dict(found.state_dict()), dict(expected))
    config = json.loads((tmp_path / "bf16/config.json").read_text())
    assert "quantization_config" not in config and found.manifest.hub.weight_block_size is None
    convert(fp8, tmp_path / "fp32", Options("fp32"))
    exact, wide = bestiary.load(fp8, dtype=torch.float32).state_dict(), tensors(tmp_path / "fp32")
    assert torch.equal(wide["model.layers.1.self_attn.o_proj.weight"], exact["model.layers.1.self_attn.o_proj.weight"])
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}


def test_resharded_bytes_stay(fp8: Path, tmp_path: Path) -> None:
    report = convert(fp8, tmp_path / "small", Options(max_shard_size=20_000))
    assert len(report.files) > 3 and same(tensors(tmp_path / "small"), tensors(fp8))
    assert json.loads((tmp_path / "small/config.json").read_text()) == json.loads((fp8 / "config.json").read_text())
    convert(tmp_path / "small", tmp_path / "one", Options())
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    assert same(tensors(tmp_path / "one"), tensors(fp8))


@pytest.mark.parametrize("power", [False, True], ids=["fp32-scales", "power-of-two"])
def test_quantised_as_defined(checkpoint: Path, tmp_path: Path, power: bool) -> None:
    convert(checkpoint, tmp_path / "fp8", Options("fp8", (16, 8), power, max_shard_size=30_000))
    source, made = tensors(checkpoint), tensors(tmp_path / "fp8")
    roles = {p.hub: e.weight.role for e in entries(bestiary.resolve(str(checkpoint))) for p in e.pieces}
    matrices = {name for name, role in roles.items() if role in QUANTISED}
    assert made.keys() == source.keys() | {f"{name}_scale_inv" for name in matrices} and len(matrices) > 20
    for name, tensor in source.items():
        if name in matrices:
            codes, scale = quantise_blocks(tensor, (16, 8), power_of_two=power)
            assert torch.equal(made[name].view(torch.uint8), codes.view(torch.uint8)) and torch.equal(made[f"{name}_scale_inv"], scale)
        else:
            assert torch.equal(made[name], tensor)
    config = json.loads((tmp_path / "fp8/config.json").read_text())["quantization_config"]
    assert config["weight_block_size"] == [16, 8] and config.get("scale_fmt") == ("ue8m0" if power else None)
    assert bestiary.load(tmp_path / "fp8").manifest.hub.weight_block_size == (16, 8)
    if power:
        convert(tmp_path / "fp8", tmp_path / "bf16", Options("fp32"))
        convert(tmp_path / "bf16", tmp_path / "again", Options("fp8", (16, 8), True))
        a, b = (bestiary.load(tmp_path / name, dtype=torch.float32).state_dict() for name in ("fp8", "again"))
        assert same(dict(a), dict(b))


def test_experts_packed_and_back(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "packed", Options(experts="packed"))
    packed, source = tensors(tmp_path / "packed"), tensors(checkpoint)
    assert packed["model.layers.1.mlp.experts.gate_up_proj"].shape == (6, 36, 44)
    assert torch.equal(packed["model.layers.1.mlp.experts.gate_up_proj"][4, 18:], source["model.layers.1.mlp.experts.4.up_proj.weight"])
    assert same(dict(bestiary.load(tmp_path / "packed").state_dict()), dict(bestiary.load(checkpoint).state_dict()))
    convert(tmp_path / "packed", tmp_path / "back", Options(experts="per-expert"))
    assert same(tensors(tmp_path / "back"), source)


def test_fp8_experts_packed_and_back(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (6, 9))
    convert(tmp_path / "fp8", tmp_path / "packed", Options(experts="packed"))
    assert tensors(tmp_path / "packed")["model.layers.1.mlp.experts.gate_up_proj_scale_inv"].shape == (6, 6, 5)
    convert(tmp_path / "packed", tmp_path / "back", Options(experts="per-expert"))
    assert same(tensors(tmp_path / "back"), tensors(tmp_path / "fp8"))
    quantised(tmp_path / "ragged", V3, (16, 16))
    message = error_of(lambda: convert(tmp_path / "ragged", tmp_path / "no", Options(experts="packed")))
    assert "rows that do not fill blocks of 16" in message and not (tmp_path / "no").exists()


def test_deepseek_names_and_back(fp8: Path, tmp_path: Path) -> None:
    report = convert(fp8, tmp_path / "demo", Options(names="deepseek"))
    held = read_file(tmp_path / "demo/model0-mp1.safetensors")
    assert {"embed.weight", "head.weight", "norm.weight", "layers.1.attn.wq_a.scale", "layers.1.ffn.gate.bias"} <= held.keys()
    assert "layers.1.ffn.experts.5.w2.weight" in held and "layers.1.ffn_norm.weight" in held
    assert "prediction layer" in report.left_out and not [name for name in held if name.startswith("layers.3.")]
    convert(tmp_path / "demo", tmp_path / "back", Options(max_shard_size=20_000))
    source = {name: tensor for name, tensor in tensors(fp8).items() if not name.startswith("model.layers.3.")}
    assert same(tensors(tmp_path / "back"), source)
    bestiary.load(tmp_path / "back")
    bestiary.save(fresh(LLAMA), tmp_path / "llama")
    message = error_of(lambda: convert(tmp_path / "llama", tmp_path / "no", Options(names="deepseek")))
    assert "DeepSeek's code computes MLA only" in message


@given(
    st.one_of(
        st.builds(
            "model.layers.{}.{}.weight".format, st.integers(0, 99), st.sampled_from([n for n in THERE if "_proj" in n or "_norm" in n])
        ),
        st.builds("model.layers.{}.mlp.experts.{}.up_proj.weight_scale_inv".format, st.integers(0, 99), st.integers(0, 999)),
        st.sampled_from(
            ["lm_head.weight", "model.norm.weight", "model.embed_tokens.weight", "model.layers.7.mlp.gate.e_score_correction_bias"]
        ),
    )
)
def test_names_have_a_way_back(name: str) -> None:
    assert (to_hub(to_deepseek(name)) == name and to_deepseek(name) != name) or name.startswith("model.norm")


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    quantised(tmp_path / "fp8", V3, (16, 16))
    convert(tmp_path / "fp8", tmp_path / "fp32", Options("fp32", max_shard_size=50_000))
    ours = bestiary.load(tmp_path / "fp8", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fp32", dtype=torch.float32, experts_implementation="eager").eval()
    ids = torch.randint(0, 53, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_killed_and_repeated(sharded: Path, tmp_path: Path) -> None:
    kill = """
write, done = c.Writer.write, []
def dying(self, path, tensors):
    if len(done) == 2:
        path.with_name(f".{path.name}.part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(path)
    write(self, path, tensors)
c.Writer.write = dying
"""
    options = "'fp8', (16, 16), max_shard_size=20_000"
    assert run(sharded, tmp_path / "out", options, kill).returncode == -9
    staging = tmp_path / ".out.converting"
    kept = {path.name: path.stat().st_mtime_ns for path in staging.glob("model*.safetensors")}
    assert len(kept) == 2 and not (tmp_path / "out").exists()
    done = run(sharded, tmp_path / "out", options)
    assert done.returncode == 0 and "2 of them done before" in done.stdout, done.stderr
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept and not staging.exists()
    convert(sharded, tmp_path / "whole", Options("fp8", (16, 16), max_shard_size=20_000))
    assert same(tensors(tmp_path / "out"), tensors(tmp_path / "whole"))
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".") or path.name == "journal.json"]


def test_other_options_begin_anew(sharded: Path, tmp_path: Path) -> None:
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    done = run(sharded, tmp_path / "out", "max_shard_size=50_000", full)
    assert done.returncode == 1 and "the disk is full" in done.stderr and not (tmp_path / "out").exists()
    assert (tmp_path / ".out.converting").is_dir(), "what fits is kept for the next try"
    assert convert(sharded, tmp_path / "out", Options("bf16")).kept == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "bestiary.json",
    }  # fmt: skip


def test_memory_stays_small(tmp_path: Path) -> None:
    big = {**LLAMA, "model": {**LLAMA["model"], "vocab_size": 60_000, "hidden_size": 768}}
    bestiary.save(bestiary.create_model(big), tmp_path / "big", dtype=torch.float32)
    measure = """
def peak():
    return max(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
import threading, time, torch, safetensors, huggingface_hub
from huggingface_hub import split_torch_state_dict_into_shards
base, most = peak(), [0.0]
def watch():
    while True:
        most[0] = max(most[0], peak() - base)
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
import atexit
atexit.register(lambda: print("most", most[0]))
"""
    done = run(tmp_path / "big", tmp_path / "out", "'fp8'", measure)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "big/model.safetensors").stat().st_size / 2**20
    assert size > 350 and float(done.stdout.split("most")[1]) < 120


def test_carries_other_files_along(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "LICENSE", "README.md"):
        (checkpoint / name).write_text(name)
    (checkpoint / "modeling_x.py").write_text("raise SystemExit")
    edit_json(checkpoint / "bestiary.json", lambda data: data.update(figures={"steps": 3}))
    convert(checkpoint, tmp_path / "out", Options("fp16"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "LICENSE", "README.md", "bestiary.json", "config.json"} <= names and "modeling_x.py" not in names
    told = json.loads((tmp_path / "out/bestiary.json").read_text())
    assert told["figures"] == {"steps": 3} and told["manifest"]["hub"]["dtype"] == "float16"
    assert bestiary.load(tmp_path / "out").model.norm.weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options("bf8"), "--to bf8: there is no such form"),
        (Options("bf16", (128, 128)), "Add --to fp8"),
        (Options("fp8", (0, 128)), "at least one row"),
        (Options(experts="stacked"), "--experts stacked"),  # pyright: ignore[reportArgumentType]
        (Options(experts="packed", names="deepseek"), "one tensor per expert"),
    ],
)
def test_options_that_are_none(checkpoint: Path, tmp_path: Path, options: Options, says: str) -> None:
    assert says in error_of(lambda: convert(checkpoint, tmp_path / "out", options))
    assert [path.name for path in tmp_path.iterdir()] == ["v3"]


def test_numbers_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    edit_tensors(checkpoint, lambda held: held[name].view(-1)[5].fill_(1e6))
    assert f"{name}: it holds numbers up to 1e+06, and fp16 ends at 65504" in error_of(
        lambda: convert(checkpoint, tmp_path / "a", Options("fp16"))
    )
    edit_tensors(checkpoint, lambda held: held[name].view(-1)[5].fill_(float("nan")))
    assert f"{name}: it holds numbers that are not finite" in error_of(lambda: convert(checkpoint, tmp_path / "b", Options("fp8")))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_targets_that_are_taken(checkpoint: Path, tmp_path: Path) -> None:
    bestiary.save(fresh(LLAMA), tmp_path / "other")
    assert "there is something already" in error_of(lambda: convert(checkpoint, tmp_path / "other", Options("bf16")))
    assert "one folder" in error_of(lambda: convert(checkpoint, checkpoint, Options("bf16"), overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "no checkpoint" in error_of(lambda: convert(checkpoint, tmp_path / "mine", Options("bf16"), overwrite=True))
    convert(checkpoint, tmp_path / "other", Options("bf16"), overwrite=True)
    assert bestiary.load(tmp_path / "other").manifest.model.vocab_size == 53
