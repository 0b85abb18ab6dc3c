"""The FP8 component in whole models: what it touches, that it trains, saves and loads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bestiary
from bestiary.core.contracts import Batch
from bestiary.lab.training.optimizer import Optimizers
from bestiary.lab.training.options import OptimizerOptions
from bestiary.plugins.fp8.grouped import FP8GroupedLinear
from bestiary.plugins.fp8.linear import FP8Linear
from bestiary.plugins.fp8.norm import FP8Norm

NANO = "deepseek-v3-nano"


def batch(length: int = 40) -> Batch:
    tokens = torch.randint(0, 200, (2, length + 1), generator=torch.Generator().manual_seed(1))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def test_what_stays_high() -> None:
    model = bestiary.create_model(NANO, set=["precision.use=fp8"])
    fp8 = {name for name, part in model.named_modules() if isinstance(part, (FP8Linear, FP8GroupedLinear))}
    roles = {entry.name: entry.weight.role for entry in bestiary.core.table.entries(model.manifest)}
    low = {name for name, role in roles.items() if role in ("linear", "expert") and name.endswith(".weight")}
    assert fp8 == {name.removesuffix(".weight") for name in low}
    assert not any("lm_head" in name or "embed" in name or "gate." in name or "eh_proj" in name for name in fp8)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_norms_before_fp8_layers_make_their_codes() -> None:
    model = bestiary.create_model(NANO, set=["precision.use=fp8"])
    found = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, FP8Norm)}
    assert found == {"input_layernorm", "post_attention_layernorm", "q_a_layernorm", "kv_a_layernorm"}
    assert not isinstance(model.model.norm, FP8Norm), "the head reads it"
    plain = bestiary.create_model(NANO, set=["precision.use=bf16"])
    assert not any(isinstance(part, FP8Norm) for part in plain.modules())


def test_same_weights_and_close_loss() -> None:
    """Without experts: which ones a token takes may hang on the last digits."""
    losses, grads = [], []
    for use in ("bf16", "fp8"):
        model = bestiary.create_model(NANO, set=[f"precision.use={use}", "block.ffn.use=dense", "block.ffn.intermediate_size=100"], seed=3)
        loss = model.loss(batch(), model.counts(batch())).total
        loss.backward()
        losses.append(loss.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert torch.cosine_similarity(grads[0], grads[1], dim=0) > 0.98


def test_trains() -> None:
    model = bestiary.create_model(NANO, set=["precision.use=fp8"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model.loss(batch(), model.counts(batch())).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_masters_and_gradients_are_fp32_and_moments_bf16_where_a_recipe_says_so() -> None:
    """What DeepSeek-V3 trains with (section 3.3.3): `precision.use = "fp8"` with `optimizer.moments = "bfloat16"`."""
    model = bestiary.create_model(NANO, set=["precision.use=fp8"])
    optimizers = Optimizers(model, OptimizerOptions(moments="bfloat16"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.loss(batch(), model.counts(batch())).total.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    optimizers.step()
    state, weights = optimizers.state(), {name for name in before if name.endswith("_proj.weight")}
    assert {tensor.dtype for name in weights for tensor in state[name].values() if tensor.ndim > 1} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rounded = [name for name in weights if torch.equal(model.get_parameter(name), model.get_parameter(name).bfloat16().float())]
    assert not rounded and all(not torch.equal(before[name], model.get_parameter(name)) for name in weights)


def test_saved_weights_are_the_masters(tmp_path: Path) -> None:
    model = bestiary.create_model(NANO, set=["precision.use=fp8"])
    bestiary.save(model, tmp_path / "m")
    again = bestiary.load(tmp_path / "m")
    assert again.manifest.precision.use == "fp8"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_kernels_refuse_what_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(bestiary.BestiaryError, match="only backend = 'emulation'"):
        bestiary.create_model(NANO, set=["precision.use=fp8", "precision.backend=triton", "precision.accumulation=hopper"])
    with pytest.raises(bestiary.BestiaryError, match=r"and there is none here\. Set precision\.backend = 'emulation', which runs here"):
        bestiary.create_model(NANO, set=["precision.use=fp8", "precision.backend=triton"])


def test_bad_options() -> None:
    with pytest.raises(bestiary.BestiaryError, match="gradients"):
        bestiary.create_model(NANO, set=["precision.use=fp8", "precision.gradients=huge"])
    with pytest.raises(bestiary.BestiaryError, match="floor"):
        bestiary.create_model(NANO, set=["precision.use=fp8", "precision.floor=0"])


def test_gradients_by_kept_codes_are_near_those_by_numbers() -> None:
    grads = []
    for saved in ("bf16", "fp8"):
        model = bestiary.create_model(NANO, set=["precision.use=fp8", f"precision.saved_swiglu={saved}"], seed=3)
        experts, shared = model.model.layers[1].mlp.experts, model.model.layers[1].mlp.shared_experts
        x = torch.randn(256, model.manifest.model.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
        weights = torch.full((256, 1), 0.5).bfloat16().requires_grad_()
        routed = experts(SimpleNamespace(rows=x, counts=torch.full((16,), 16), weights=weights))
        (routed + shared(x)).float().square().sum().backward()
        assert x.grad is not None and weights.grad is not None
        grads.append((x.grad.float(), weights.grad.float()))
    for plain, coded in zip(*grads, strict=True):
        assert not torch.equal(plain, coded) and (plain - coded).norm() < 0.06 * plain.norm()
