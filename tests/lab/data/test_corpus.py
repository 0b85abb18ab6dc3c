"""Sources: what is found, what documents are called, and what is wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bestiary import BestiaryError
from bestiary.lab.data.corpus import open_corpus
from bestiary.lab.data.document import Fingerprint
from bestiary.lab.data.options import DataOptions


def read(*sources: str | Path, **options):
    corpus = open_corpus(DataOptions(source=tuple(map(str, sources)), **options))
    return {document.name: document.text.decode() for document in corpus.documents()}, corpus


def problem(*sources: str | Path, **options) -> str:
    with pytest.raises(BestiaryError) as caught:
        read(*sources, **options)
    return str(caught.value)


def lines(path: Path, *records) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_stdlib_is_a_real_corpus_in_the_same_order_each_time():
    one, two = (read("stdlib")[0] for _ in range(2))
    assert sum(map(len, one.values())) > 5_000_000
    assert list(one.items()) == list(two.items())
    assert "stdlib/json/decoder.py" in one
    assert not any("site-packages" in name for name in one)


def test_folders_give_files_of_the_suffixes_and_say_what_they_left_out(lab: Path):
    (lab / "text" / "image.png").write_bytes(b"\x89PNG")
    (lab / "text" / "empty.txt").write_text("")
    (lab / "text" / "latin.txt").write_bytes("Bär".encode("latin-1"))
    found, corpus = read(lab / "text")
    assert sorted(found) == [f"text/{index}.txt" for index in range(8)]
    assert corpus.left_out == [str(lab / "text" / "latin.txt")]


def test_folders_inside_are_read_but_for_those_of_tools(tmp_path: Path):
    for name in ("a/b/c.txt", "a/__pycache__/d.txt", ".git/e.txt", "b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(read(tmp_path)[0].values()) == ["b.txt", "a/b/c.txt"]


@pytest.mark.parametrize("name", ["beasts.jsonl", "beasts.jsonl.gz"])
def test_a_line_of_jsonl_is_a_document(tmp_path: Path, name: str):
    path = lines(tmp_path / name, {"text": "Bär"}, {"text": ""}, {"text": "two\nlines", "id": 3})
    assert read(path)[0] == {f"{name}#1": "Bär", f"{name}#3": "two\nlines"}
    assert read(tmp_path, text_field="text")[0] == {f"{tmp_path.name}/{name}#1": "Bär", f"{tmp_path.name}/{name}#3": "two\nlines"}


def test_a_row_of_parquet_is_a_document(tmp_path: Path):
    path = tmp_path / "beasts.parquet"
    texts = [f"beast {index} Ö" for index in range(1000)]
    pyarrow.parquet.write_table(pyarrow.table({"content": texts, "id": range(1000)}), path, row_group_size=300)
    found, corpus = read(path, text_field="content")
    assert list(found.values()) == texts
    assert found["beasts.parquet#999"] == "beast 999 Ö"
    assert corpus.count == 1000


def test_sources_are_mixed_and_equal_names_are_told_apart(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    records = lines(tmp_path / "r.jsonl", {"text": "c"})
    assert read(tmp_path / "a" / "x.txt", records, tmp_path / "b" / "x.txt")[0] == {"x.txt": "a", "r.jsonl#1": "c", "x.txt(2)": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2: this is not valid JSON"),
        (b'{"text": "\xff"}', "line 2: this is not valid JSON"),
        (b'["text"]', "line 2: expected a JSON object, found list"),
        (b'{"content": "a"}', "line 2: there is no 'text' among content. Set data.text_field"),
        (b'{"text": 5}', "line 2: 'text' should be a text, and is 5"),
        (b'{"text": "\\ud800"}', "line 2: 'text' holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    assert f"{tmp_path / 'x.jsonl'}, {message}" in problem(tmp_path)


def test_files_that_are_not_what_they_seem_are_named(tmp_path: Path):
    whole = gzip.compress(b'{"text": "a long enough line"}\n' * 99)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    assert f"{tmp_path / 'cut.jsonl.gz'}: this file cannot be read" in problem(tmp_path / "cut.jsonl.gz")
    (tmp_path / "no.jsonl.gz").write_text("plain")
    assert f"{tmp_path / 'no.jsonl.gz'}: this file cannot be read" in problem(tmp_path / "no.jsonl.gz")
    (tmp_path / "no.parquet").write_text("plain")
    assert f"{tmp_path / 'no.parquet'}: this is no Parquet file" in problem(tmp_path / "no.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None], "n": [1, 2]}), tmp_path / "null.parquet")
    assert "null.parquet, row 1: 'text' should be a text, and is null" in problem(tmp_path / "null.parquet")
    assert "there is no 'body' among text, n" in problem(tmp_path / "null.parquet", text_field="body")
    (tmp_path / "latin.txt").write_bytes("Bär".encode("latin-1"))
    assert "latin.txt: this file is not UTF-8 text (byte 1)" in problem(tmp_path / "latin.txt")


def test_everything_missing_is_said_at_once(tmp_path: Path):
    found = problem(tmp_path / "a", tmp_path / "b.parquet", f"hf:{tmp_path / 'c'}")
    assert all(f"no file or folder {tmp_path / name}." in found for name in ("a", "b.parquet", "c"))


def test_limits_bound_what_is_read_of_each_source(tmp_path: Path):
    one = lines(tmp_path / "one.jsonl", *({"text": "abcd"} for _ in range(10)))
    two = lines(tmp_path / "two.jsonl", *({"text": "efgh"} for _ in range(10)))
    with two.open("a") as file:
        file.write("never read")
    assert list(read(one, two, limit_documents=2)[0]) == ["one.jsonl#1", "one.jsonl#2", "two.jsonl#1", "two.jsonl#2"]
    assert list(read(one, limit_bytes=8)[0]) == ["one.jsonl#1", "one.jsonl#2"]
    assert list(read(one, limit_bytes=9)[0]) == ["one.jsonl#1", "one.jsonl#2", "one.jsonl#3"]


def test_a_dataset_is_streamed_from_a_folder(tmp_path: Path):
    folder = tmp_path / "beasts"
    folder.mkdir()
    lines(folder / "train.jsonl", {"body": "one"}, {"body": ""}, {"body": "three"})
    lines(folder / "validation.jsonl", {"body": "four"})
    found, corpus = read(f"hf:{folder}", text_field="body")
    assert found == {"hf:beasts/default/train#0": "one", "hf:beasts/default/train#2": "three"}
    assert corpus.local
    assert list(read(f"hf:{folder}", text_field="body", hf={"split": "validation"})[0].values()) == ["four"]
    assert "there is no 'text' among body" in problem(f"hf:{folder}")
    assert "the dataset cannot be opened" in problem(f"hf:{folder}", text_field="body", hf={"split": "nothing"})


def test_a_dataset_of_the_hub_needs_a_commit_or_the_hub(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    asked = open_corpus(DataOptions(source="hf:org/name@main"))  # type: ignore[arg-type]
    with pytest.raises(BestiaryError, match="the Hub does not say which commit is current: no network"):
        _ = asked.identity
    pinned = open_corpus(DataOptions(source="hf:org/name@" + "a" * 40))  # type: ignore[arg-type]
    assert pinned.identity != open_corpus(DataOptions(source="hf:org/name@" + "b" * 40)).identity  # type: ignore[arg-type]
    assert not pinned.local


def test_the_digest_does_not_depend_on_the_order_of_sources_but_on_names_and_texts(tmp_path: Path):
    one, two = lines(tmp_path / "1.jsonl", {"text": "a"}, {"text": "b"}), lines(tmp_path / "2.jsonl", {"text": "c"})

    def digest(*sources: Path) -> str:
        found = Fingerprint()
        for document in open_corpus(DataOptions(source=tuple(map(str, sources)))).documents():
            found.add(document)
        return found.digest()

    before = digest(one, two)
    assert before == digest(two, one)
    lines(one, {"text": "ab"}, {"text": ""})
    assert digest(one, two) != before
