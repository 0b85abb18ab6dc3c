"""What a record says about plugins is compared with what is installed, and nothing is installed or imported because of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.core.plugins import distributions
from tests.registry.conftest import edit_json, error_of


def test_record_names_every_component_and_its_distribution(checkpoint: Path) -> None:
    made = distributions(bestiary.load(checkpoint).manifest.components())

    def look(record: dict) -> None:
        assert record["distributions"] == made
        assert {"attention/mla", "ffn/moe", "router/sigmoid-group", "ffn/dense", "objective/mtp"} <= set(record["components"])
        assert set(record["components"].values()) == set(made)

    edit_json(checkpoint / "bestiary.json", look)


def test_missing_plugin_is_named_with_its_version_and_components(checkpoint: Path) -> None:
    def edit(record: dict) -> None:
        record["manifest"]["block"]["attention"] = {"use": "hyper-attention"}
        record["distributions"]["bestiary-hyper"] = "1.2"
        record["components"]["attention/hyper-attention"] = "bestiary-hyper"

    edit_json(checkpoint / "bestiary.json", edit)
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "attention/hyper-attention" in message and "pip install bestiary-hyper==1.2" in message


def test_other_version_warns_and_locked_refuses(checkpoint: Path) -> None:
    def edit(record: dict) -> None:
        record["distributions"]["bestiary"] = "99.1"

    edit_json(checkpoint / "bestiary.json", edit)
    with pytest.warns(UserWarning, match=r"made with bestiary 99\.1, and here are bestiary"):
        bestiary.load(checkpoint)
    assert "pip install bestiary==99.1" in error_of(lambda: bestiary.load(checkpoint, locked=True))


def test_same_versions_say_nothing(checkpoint: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bestiary.load(checkpoint, locked=True)


def test_component_of_another_distribution_is_refused(checkpoint: Path) -> None:
    def edit(record: dict) -> None:
        record["components"]["attention/mla"] = "numpy"
        record["distributions"]["numpy"] = "1.0"

    edit_json(checkpoint / "bestiary.json", edit)
    with pytest.raises(BestiaryError, match="attention/mla came from numpy, and here it comes from bestiary"):
        bestiary.load(checkpoint)


@pytest.mark.parametrize("broken", [[], {"bestiary": 1}, "0.1"])
def test_lock_of_another_form(checkpoint: Path, broken: object) -> None:
    edit_json(checkpoint / "bestiary.json", lambda record: record.update(distributions=broken))
    assert "plugin lock" in error_of(lambda: bestiary.load(checkpoint))
