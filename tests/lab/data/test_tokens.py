"""Bytes and `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from bestiary import BestiaryError
from bestiary.lab.data.tokens import ByteTokenizer, FileTokenizer, open_tokenizer

TEXT = "Der Bär läuft §§ schnell! 🐻 def f(x):\n    return x\n" * 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A byte-level BPE tokenizer of 320 tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    made.train_from_iterator([TEXT], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@given(st.text(max_size=40))
def test_bytes_stand_for_themselves(text):
    tokenizer, raw = ByteTokenizer(), text.encode()
    assert tokenizer.encode([raw])[0].tolist() == list(raw)
    assert tokenizer.lengths(raw).tolist() == [1] * len(raw)


def test_token_lengths_add_up_to_the_text(trained: Path):
    tokenizer = FileTokenizer(trained)
    for text in (TEXT, "a", " \n ", "🐻🐻", "unseen: 漢字"):
        lengths = tokenizer.lengths(text.encode())
        assert len(lengths) == len(tokenizer.encode([text.encode()])[0])
        assert lengths.sum() == len(text.encode())
        assert (lengths >= 0).all()


def test_text_that_a_normalizer_drops_still_counts(trained: Path, tmp_path: Path):
    made = Tokenizer.from_file(str(trained))
    made.normalizer = normalizers.Strip()
    made.save(str(tmp_path / "tokenizer.json"))
    assert FileTokenizer(tmp_path).lengths(b"  word  ").sum() == 8


def test_a_saved_byte_tokenizer_reads_and_writes_the_same_bytes(tmp_path: Path):
    ByteTokenizer().save(tmp_path, 258)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.encode(TEXT).ids == list(TEXT.encode())
    assert saved.decode(list(TEXT.encode())) == TEXT
    assert saved.token_to_id("<|endoftext|>") == 258
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 258


def test_a_file_tokenizer_is_saved_as_it_is(trained: Path, tmp_path: Path):
    FileTokenizer(trained).save(tmp_path, 0)
    assert (tmp_path / "tokenizer.json").read_bytes() == trained.read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|end|>"


def test_a_folder_names_its_tokenizer_and_a_wrong_file_is_an_error(trained: Path, tmp_path: Path):
    assert open_tokenizer(str(trained.parent)).size == np.max(list(Tokenizer.from_file(str(trained)).get_vocab().values())) + 1
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BestiaryError, match="no tokenizer that can be read"):
        open_tokenizer(str(tmp_path))
    with pytest.raises(BestiaryError, match="no tokenizer that can be read"):
        open_tokenizer(str(tmp_path / "nowhere"))


def test_text_that_looks_like_a_special_token_stays_text(trained: Path):
    """Otherwise a web page about tokenizers would end documents in its middle."""
    assert Tokenizer.from_file(str(trained)).encode("<|end|>").ids == [0]
    tokenizer = FileTokenizer(trained)
    ids = tokenizer.encode([b"a<|end|>b"])[0].tolist()
    assert 0 not in ids
    assert "".join(map(tokenizer.inner.id_to_token, ids)) == "a<|end|>b"
    assert tokenizer.lengths(b"a<|end|>b").sum() == 9


def test_a_tokenizers_own_limits_do_not_shorten_documents(trained: Path, tmp_path: Path):
    made = Tokenizer.from_file(str(trained))
    made.enable_truncation(4)
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    short, long = FileTokenizer(tmp_path).encode([b"a", TEXT.encode()])
    assert len(short) == 1
    assert long.tolist() == Tokenizer.from_file(str(trained)).encode(TEXT).ids


def test_a_hub_id_is_read_from_the_local_cache(trained: Path, tmp_path: Path, monkeypatch):
    commit = "c" * 40
    folder = tmp_path / "models--org--name"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit / "tokenizer.json").write_bytes(trained.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert open_tokenizer("org/name").digest == FileTokenizer(trained).digest
    with pytest.raises(BestiaryError, match=r"data\.tokenizer: org/other cannot be fetched"):
        open_tokenizer("org/other")
