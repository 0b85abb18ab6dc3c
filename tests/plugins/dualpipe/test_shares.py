"""What is told before a run begins is what every rank then holds."""

from __future__ import annotations

import pytest

import bestiary

LAYOUTS = {
    "dualpipe-v experts": {"use": "dualpipe-v", "pp": 2, "dp": 2, "ep": 2, "micro_batches": 4},
    "dualpipe": {"use": "dualpipe", "pp": 4, "micro_batches": 8},
    "interleaved": {"use": "pipeline", "schedule": "interleaved", "pp": 2, "micro_batches": 4},
    "1f1b": {"use": "pipeline", "schedule": "1f1b", "pp": 4, "dp": 1, "micro_batches": 4},
}


def _held(data):
    return sum(tensor.numel() for tensor in bestiary.create_model(data).state_dict().values())


@pytest.mark.parametrize(("layout", "tied"), [*((layout, False) for layout in LAYOUTS), ("dualpipe-v experts", True), ("1f1b", True)])
def test_parameters_and_work_of_every_rank(processes, model, layout, tied):
    data = {**model(tied=tied), "parallelism": LAYOUTS[layout]}
    manifest = bestiary.resolve(data)
    parallelism = manifest.parallelism.build(manifest.site)
    shares = parallelism.shares(manifest)
    told = {rank: share.parameters for share in shares for rank in share.ranks}
    assert told == dict(enumerate(processes.run(_held, data, world=parallelism.processes)))
    assert sum(share.flops for share in shares) == pytest.approx(1)
    layers = sorted(layer for share in shares for stage in share.layers for layer in stage)
    assert layers == sorted(2 * [*range(7)] if layout == "dualpipe" else range(7))


@pytest.mark.parametrize("layout", [{"use": "local"}, {"use": "fsdp", "dp": 2}])
def test_where_all_ranks_have_the_same_there_is_nothing_to_tell(model, layout):
    manifest = bestiary.resolve({**model(), "parallelism": layout})
    assert not manifest.parallelism.build(manifest.site).shares(manifest)
