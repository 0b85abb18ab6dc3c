"""Processes for a module's tests, and small models with as many layers as four ranks have stages."""

from __future__ import annotations

import pytest

from bestiary import testing


@pytest.fixture(scope="module")
def processes():
    with testing.Processes(4, timeout=30) as pool:
        yield pool


@pytest.fixture(scope="session")
def model(tiny):
    """`model("mla", "moe", mtp=True, tied=False)`: eight units of unequal cost, the first layer dense."""

    def make(attention="mla", ffn="moe", *, mtp=True, tied=False, aux=0.02, layers=7, precision="fp32"):
        moe = {
            "use": "moe",
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "intermediate_size": 9,
            "aux_loss_alpha": aux,
            "router": {"use": "sigmoid-group", "n_group": 4, "topk_group": 2},
        }
        objectives = {"next-token": {"use": "next-token"}} | ({"mtp": {"use": "mtp", "depth": 1, "weight": 0.3}} if mtp else {})
        data = tiny(attention, moe if ffn == "moe" else ffn, layers=layers, model={"tie_word_embeddings": tied}, objective=objectives)
        data["precision"] = {"use": precision}
        data["block"]["at"] = {"0": {"ffn": {"use": "dense", "intermediate_size": 21}}}
        return data

    return make
