"""The methods that people know from the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bestiary
from bestiary.core.errors import BestiaryError
from tests.registry.conftest import V3, fresh


def test_saved_and_read_back(tmp_path: Path) -> None:
    model = bestiary.create_model(V3, dtype=torch.float32)
    assert model.save_pretrained(tmp_path / "v3", max_shard_size=20_000) is None
    assert len(list((tmp_path / "v3").glob("model-*.safetensors"))) > 3 and not list((tmp_path / "v3").glob("*.bin"))
    back = bestiary.HubModel.from_pretrained(tmp_path / "v3", dtype=torch.bfloat16)
    assert isinstance(back, bestiary.HubModel)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(model.parameters(), back.parameters(), strict=True))


def test_published_and_read_back(tmp_path: Path) -> None:
    model, zoo = fresh(V3), f"file:{tmp_path}/zoo"
    where = bestiary.create_model(V3).save_pretrained(tmp_path / "v3", push_to_hub=True, repo_id=zoo, branch="first")
    assert where == zoo
    assert model.push_to_hub(zoo, commit_message="second") == zoo  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    back = bestiary.HubModel.from_pretrained(zoo)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    with pytest.raises(BestiaryError, match="unknown options safe_serialization"):
        back.save_pretrained(tmp_path / "v3", safe_serialization=False)
