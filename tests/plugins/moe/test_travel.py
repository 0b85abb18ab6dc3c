"""Tokens that travel once to every rank with experts of theirs, against a sum over copies."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bestiary.plugins.moe.hookspecs import Routing
from bestiary.plugins.moe.travel import arrive, leave


@given(st.integers(0, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 4]), st.integers(0, 10**6))
def test_there_and_home_with_every_gradient(tokens, ranks, each, k, multiple, seed):
    generator, k = torch.Generator().manual_seed(seed), min(k, ranks * each)
    chosen = torch.stack([torch.randperm(ranks * each, generator=generator)[:k] for _ in range(tokens)] or [torch.zeros(0, k).long()])
    chosen = chosen.view(tokens, k)
    weights = torch.rand(tokens, k, dtype=torch.float64, generator=generator).requires_grad_()
    x = torch.randn(tokens, 3, dtype=torch.float64, generator=generator).requires_grad_()
    leaving = leave(Routing(weights, chosen), ranks, each, torch.float64)
    pairs = {(token, int(expert) // each) for token in range(tokens) for expert in chosen[token]}
    assert leaving.counts.tolist() == [sum(rank == to for _, to in pairs) for rank in range(ranks)]
    sizes, came = leaving.counts.tolist(), []
    travelling = (leaving.copies.spread(x), leaving.experts, leaving.weights)
    for rank, parts in enumerate(zip(*(tensor.split(sizes) for tensor in travelling), strict=True)):
        sent, copies = arrive(*parts, each, lambda rows: multiple)
        assert not (sent.counts % multiple).any()
        scale = 1.0 + rank * each + torch.arange(each).repeat_interleave(sent.counts)
        came.append(copies.gather(sent.rows * sent.weights * scale[:, None]))
    ours = leaving.copies.gather(torch.cat(came))
    theirs = (weights[:, :, None] * (chosen[:, :, None] + 1) * x[:, None]).sum(dim=1)
    assert torch.allclose(ours, theirs, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), (x, weights)), torch.autograd.grad(theirs.square().sum(), (x, weights)), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-11)
