"""Documents that Python's own parser would take, or die of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.core.table import entries
from bestiary.registry.checkpoint import open_checkpoint
from bestiary.registry.safe_json import CONFIG, VALUES, parse_object, read_object
from tests.registry.conftest import V3, edit_json, error_of


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "deeper"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": "\xff"}', "utf-8"),
        ("{}".encode("utf-16"), "utf-8"),
        (b"[]", "object"),
        (b"", "Expecting"),
        (b'{"a": [' + b"," * (VALUES + 1) + b"]}", "more than"),
    ],
)
def test_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_object(text)


def test_taken_as_it_is() -> None:
    assert parse_object('{"a": [1, 2.5, {"b": "\\u00e9ü\\ud83d\\ude00"}], "c": null}'.encode()) == {"a": [1, 2.5, {"b": "éü😀"}], "c": None}


def test_longer_than_any_config(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(CONFIG + 1)
    with pytest.raises(BestiaryError, match="at most"):
        read_object(tmp_path / "config.json")


def test_pipe_is_not_waited_for(checkpoint: Path) -> None:
    for name in ("model.safetensors", "bestiary.json"):
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
        assert "no regular file" in error_of(lambda: bestiary.load(checkpoint)) or "neither" in error_of(lambda: bestiary.load(checkpoint))


def test_shard_with_a_name_that_no_file_can_have(sharded: Path) -> None:
    for name in ("a" * 5000 + ".safetensors", "a\0b.safetensors"):
        edit_json(sharded / "model.safetensors.index.json", lambda index, name=name: index["weight_map"].update({"x": name}))
        with pytest.raises(BestiaryError, match="missing"):
            open_checkpoint(sharded)


def test_more_experts_or_layers_than_any_model_has() -> None:
    experts = V3 | {"block": V3["block"] | {"ffn": V3["block"]["ffn"] | {"n_routed_experts": 6 * 10**12}}}
    with pytest.raises(BestiaryError, match="matrices of experts"):
        entries(bestiary.resolve(experts))
    with pytest.raises(BestiaryError, match="num_hidden_layers"):
        bestiary.resolve(V3 | {"model": V3["model"] | {"num_hidden_layers": 10**9}})


def test_record_that_extends_something_else(checkpoint: Path) -> None:
    edit_json(checkpoint / "bestiary.json", lambda record: record["manifest"].update(extends="/etc/passwd"))
    assert "this one extends another" in error_of(lambda: bestiary.load(checkpoint))
