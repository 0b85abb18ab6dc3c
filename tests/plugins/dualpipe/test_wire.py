"""FP8 dispatch over gloo: half the bytes, and not a bit of a result changes."""

from __future__ import annotations

import pytest
import torch

from bestiary import testing

LAYOUTS = {
    "dualpipe-v": {"use": "dualpipe-v", "pp": 2, "dp": 2, "ep": 2, "micro_batches": 4},
    "1f1b": {"use": "pipeline", "pp": 1, "dp": 2, "ep": 2, "micro_batches": 2},
    "fsdp": {"use": "fsdp", "dp": 4, "ep": 4},
}
WIDTH = 256
PLAIN, CODED = 2 * WIDTH, WIDTH + 4 * WIDTH // 128
"""Bytes of a row."""
WEIGHTS, IDS = 2 * 3, 4 * 3
"""Of what goes with it: routing weights, which have gradients, and experts' numbers."""


@pytest.mark.parametrize(("layout", "gradients"), [("dualpipe-v", "fp8"), ("1f1b", "bf16"), ("fsdp", "fp8")])
def test_rows_as_codes_give_the_same_bits(processes, model, layout, gradients):
    data = model(layers=4)
    data["model"]["hidden_size"] = WIDTH
    data["precision"] = {"use": "fp8", "dispatched_gradients": gradients}
    found = {}
    for wire in ("auto", "plain"):
        parallelism = LAYOUTS[layout] | {"wire": wire}
        case = testing.Case(data, parallelism, dtype=None)
        found[wire] = processes.run(testing.outcome, case, world=parallelism.get("pp", 1) * parallelism["dp"])
    for coded, plain in zip(found["auto"], found["plain"], strict=True):
        assert (coded.losses, coded.norms, coded.held_out) == (plain.losses, plain.norms, plain.held_out)
        assert coded.gradients.keys() == plain.gradients.keys()
        assert all(torch.equal(gradient, plain.gradients[name]) for name, gradient in coded.gradients.items())
        assert all(torch.equal(tensor, plain.state[name]) for name, tensor in coded.state.items())
    coded, plain = (sum(one.sent for one in found[wire]) for wire in ("auto", "plain"))
    rows = (plain - coded) / (PLAIN - CODED)
    if gradients == "fp8":
        forward = (plain - rows * (2 * PLAIN + WEIGHTS)) / IDS
        backward = rows - forward
    else:
        forward, backward = rows, (plain - rows * (2 * PLAIN + WEIGHTS + IDS)) / (2 * PLAIN + WEIGHTS)
    assert forward == int(forward) > backward == int(backward) > 0, "each row goes and comes home, the one in codes and the other not"
