"""The option `kernels` of MLA: what it refuses, and where it may not matter."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import bestiary
from bestiary.core.contracts import Context

TRITON = "block.attention.kernels=triton"


def test_triton_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bestiary.plugins.attention_mla.kernels.launch", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(bestiary.BestiaryError, match=r"kernels = 'triton': .*pip install 'bestiary\[gpu\]'.*kernels = 'torch'"):
        bestiary.create_model("deepseek-v3-nano", set=[TRITON], device="meta")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes what a GPU would refuse")
@pytest.mark.parametrize("cached", [False, True])
def test_a_cpu_is_refused(tiny, build, cached: bool) -> None:
    pytest.importorskip("triton")
    layer = build(tiny(layers=1), set=[TRITON], dtype=torch.float32).model.layers[0].self_attn
    caches = [layer.new_cache(1, 4, device=torch.device("cpu"), dtype=torch.float32)]
    if cached:
        caches[0].grow(1)
    context = Context(torch.arange(2)[None], caches=caches)
    with torch.no_grad(), pytest.raises(bestiary.BestiaryError, match=r"this tensor is on cpu\. Set block\.attention\.kernels = 'torch'"):
        layer(torch.randn(1, 2, 14), context)


def test_types_that_the_kernels_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from bestiary.plugins.attention_mla.kernels import launch

    monkeypatch.setattr(launch, "INTERPRETED", True)
    for types in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        with pytest.raises(bestiary.BestiaryError, match="bf16, fp16 or fp32, the same for all"):
            launch.check(*(torch.ones(1, dtype=kind) for kind in types))


def test_torch_is_not_said_and_triton_is() -> None:
    plain = bestiary.resolve("deepseek-v3-nano")
    said = bestiary.resolve("deepseek-v3-nano", set=["block.attention.kernels=torch"])
    assert said.digest == plain.digest and "kernels" not in said.table()["block"]["attention"]
    triton = bestiary.resolve("deepseek-v3-nano", set=[TRITON])
    assert bestiary.resolve(triton.table()).layers[0].attention.options.kernels == "triton"
