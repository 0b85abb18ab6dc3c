"""Options of a recipe's data: paths, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from bestiary.lab.data.options import DataOptions


def test_paths_start_at_a_folder_and_names_stay(tmp_path: Path):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "here").mkdir()
    sources = ("stdlib", "text", "hf:org/name@main", "hf:org/here", "hf:./data", "/text")
    options = DataOptions(source=sources, tokenizer="org/name", cache="tokens").at(tmp_path)
    here = str(tmp_path)
    assert options.source == ("stdlib", f"{here}/text", "hf:org/name@main", f"hf:{here}/org/here", f"hf:{here}/data", "/text")
    assert options.tokenizer == "org/name"
    assert options.cache == f"{here}/tokens"
    assert DataOptions(tokenizer="org/here").at(tmp_path).tokenizer == f"{here}/org/here"
    assert DataOptions(tokenizer="a/tokenizer.json").at(tmp_path).tokenizer == f"{here}/a/tokenizer.json"
    assert DataOptions().at(tmp_path).cache == ""
    assert options.at(Path("/elsewhere")) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hf": {"split": "test"}}, r"data\.hf describes a dataset, and no source is one"),
        ({"fim_tokens": (1, 2, 3)}, r"data\.fim_rate is 0"),
        ({"fim_rate": 0.1, "fim_tokens": (1, 2, 2)}, "three different tokens"),
        ({"fim_rate": 1.1}, "fim_rate"),
        ({"limit_documents": 0}, "limit_documents"),
        ({"source": ()}, "source"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        DataOptions.model_validate(options)
