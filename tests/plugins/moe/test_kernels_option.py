"""The option `kernels` of the mixture of experts: what it refuses, and where it may not matter."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import bestiary
from bestiary.core.contracts import Context
from bestiary.plugins.moe.hookspecs import Routing

TRITON = "block.ffn.kernels=triton"


def test_triton_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("bestiary.plugins.moe.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(bestiary.BestiaryError, match=r"kernels = 'triton': .*pip install 'bestiary\[gpu\]'.*kernels = 'torch'"):
        bestiary.create_model("deepseek-v3-nano", set=[TRITON], device="meta")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes what a GPU would refuse")
def test_a_cpu_is_refused_by_every_kernel(tiny, build) -> None:
    pytest.importorskip("triton")
    layer, x, place = build(tiny(layers=1), set=[TRITON], dtype=torch.float32).model.layers[0].mlp, torch.randn(2, 14), torch.eye(2).long()
    one = torch.zeros(2, 1, dtype=torch.int64)
    kernels = layer.moves
    for call in (
        lambda: layer(x[None], Context(torch.arange(2)[None])),
        lambda: layer.dispatch(x, Routing(torch.ones(2, 1), one)),
        lambda: kernels.copy(x, place[0], one),
        lambda: kernels.copy_codes(x.to(torch.uint8), x, place[0], one),
        lambda: kernels.sum(x, place[0], one),
        lambda: layer.experts.down_proj(torch.randn(2, 9), torch.tensor([2, 0, 0, 0, 0, 0])),
    ):
        with torch.no_grad(), pytest.raises(bestiary.BestiaryError, match=r"this tensor is on cpu\. Set block\.ffn\.kernels = 'torch'"):
            call()


def test_types_that_the_kernels_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from bestiary.plugins.moe.kernels import launch

    monkeypatch.setattr(launch, "INTERPRETED", True)
    with pytest.raises(bestiary.BestiaryError, match="takes bfloat16, float16, float32, and not float64"):
        launch.check(torch.ones(1, dtype=torch.float64))


def test_shapes_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from bestiary.plugins.moe.kernels import launch
    from bestiary.plugins.moe.options import SigmoidGroupOptions

    monkeypatch.setattr(launch, "INTERPRETED", True)
    kernels, x, place, counts = launch.Kernels(), torch.randn(2, 6), torch.eye(2).long(), torch.tensor([1, 1])
    for call in (
        lambda: kernels.route(x, torch.zeros(5), 2, SigmoidGroupOptions()),
        lambda: kernels.route(x, torch.zeros(6), 2, SigmoidGroupOptions(n_group=4)),
        lambda: kernels.copy(x, counts, torch.zeros(3, 1, dtype=torch.int64)),
        lambda: kernels.copy(x, counts, place),
        lambda: kernels.sum(x, counts[:1], place),
        lambda: kernels.sum(x, counts, place, torch.ones(2, 3)),
        lambda: kernels.grouped(x, torch.randn(3, 5, 6), counts, None),
        lambda: kernels.grouped(x, torch.randn(2, 5, 7), counts, None),
        lambda: kernels.grouped(x, torch.randn(2, 5, 6), counts.int(), None),
    ):
        with pytest.raises(ValueError, match=r"fit|were expected"):
            call()


def test_torch_is_not_said_and_triton_is() -> None:
    plain = bestiary.resolve("deepseek-v3-nano")
    said = bestiary.resolve("deepseek-v3-nano", set=["block.ffn.kernels=torch"])
    assert said.digest == plain.digest and "kernels" not in said.table()["block"]["ffn"]
    triton = bestiary.resolve("deepseek-v3-nano", set=[TRITON])
    assert bestiary.resolve(triton.table()).layers[-1].ffn.options.kernels == "triton"
