"""Weight gradients apart from input gradients: nothing is lost, doubled, or done early."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bestiary.core.layers.grouped import GroupedLinear
from bestiary.core.layers.linear import Linear
from bestiary.core.weight_gradients import WeightGradients, accumulate, active


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    """Both kinds of linear layer, with and without a bias."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Linear(5, 7, bias=True), Linear(3, 4)
        self.experts = GroupedLinear(3, 7, 3)
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        return self.last(self.experts(self.first(x).tanh(), torch.tensor([2, 0, 4])).sin())


def plain(net, x):
    net.zero_grad()
    x.grad = None
    net(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}, x.grad.clone()


@pytest.fixture
def net():
    return Net().double()


@pytest.fixture
def x():
    return torch.randn(6, 5, dtype=torch.float64, requires_grad=True)


def test_deferred_gradients_equal_those_of_autograd_and_arrive_only_when_run(net, x):
    expected, x_expected = plain(net, x)
    net.zero_grad()
    x.grad = None
    store = WeightGradients()
    with store.splitting():
        loss = net(x).square().sum()
    with store.deferring():
        loss.backward()
    assert torch.allclose(x.grad, x_expected, atol=1e-12)
    assert net.last.weight.grad is None
    assert net.experts.weight.grad is None
    assert len(store) == 1
    store.run_one()
    assert len(store) == 0
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-12), name


def test_without_deferring_a_split_backward_leaves_the_gradients_at_once(net, x):
    expected, _ = plain(net, x)
    net.zero_grad()
    store = WeightGradients()
    with store.splitting():
        loss = net(x).square().sum()
    loss.backward()
    assert len(store) == 0
    assert all(torch.allclose(p.grad, expected[name], atol=1e-12) for name, p in net.named_parameters())


def test_sets_run_first_in_first_out_and_add_up(net, x):
    expected, _ = plain(net, x)
    net.zero_grad()
    store = WeightGradients()
    for factor in (1, 2):
        with store.splitting():
            loss = factor * net(x).square().sum()
        with store.deferring():
            loss.backward()
    assert len(store) == 2
    store.run_one()
    assert torch.allclose(net.last.weight.grad, expected["last.weight"], atol=1e-12)
    store.run_all()
    for name in ("first.weight", "experts.weight", "last.weight"):
        assert torch.allclose(net.get_parameter(name).grad, 3 * expected[name], atol=1e-12)


def test_splitting_does_every_product_once(net, x):
    with Products() as whole:
        net(x).square().sum().backward()
    net.zero_grad()
    store = WeightGradients()
    with Products() as split:
        with store.splitting():
            loss = net(x).square().sum()
        with store.deferring():
            loss.backward()
        deferred = split.count
        store.run_all()
    assert split.count == whole.count
    assert split.count - deferred == 2 + 3, "one for each linear layer, one for each expert"


def test_only_forward_passes_inside_split(net, x):
    store = WeightGradients()
    with store.splitting():
        assert active() is store
        with WeightGradients().splitting():
            assert active() is not store
        assert active() is store
    assert active() is None
    with store.deferring():
        net(x).sum().backward()
    store.run_all()
    assert net.last.weight.grad is not None


def test_splitting_ends_with_an_error(net):
    with pytest.raises(RuntimeError), WeightGradients().splitting():
        net(torch.zeros(6, 4, dtype=torch.float64))
    assert active() is None


def test_a_frozen_weight_gets_no_gradient(net, x):
    net.experts.weight.requires_grad_(False)
    net.last.weight.requires_grad_(False)
    (x_expected,) = torch.autograd.grad(net(x).square().sum(), x)
    store = WeightGradients()
    with store.splitting():
        loss = net(x).square().sum()
    with store.deferring():
        loss.backward()
    store.run_all()
    assert net.experts.weight.grad is None
    assert net.last.weight.grad is None
    assert torch.allclose(x.grad, x_expected, atol=1e-12)


def test_clear_forgets_deferred_work(net, x):
    store = WeightGradients()
    with store.splitting():
        loss = net(x).sum()
    with store.deferring():
        loss.backward()
    store.clear()
    store.run_all()
    assert net.last.weight.grad is None


def test_bf16_activations_leave_fp32_gradients_on_fp32_weights():
    layer, x = Linear(8, 8), torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    nn.init.normal_(layer.weight)
    layer(x).float().square().sum().backward()
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    store = WeightGradients()
    with store.splitting():
        y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    assert torch.equal(layer.weight.grad, expected)


def test_accumulating_adds_to_what_is_there_in_the_parameters_dtype():
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    accumulate(parameter, torch.ones(2))
    accumulate(parameter, torch.ones(2))
    assert parameter.grad.dtype == torch.bfloat16
    assert parameter.grad.tolist() == [2, 2]
