"""Names decide sides and places."""

from __future__ import annotations

from bestiary.lab.data.document import PLACES, Document, Split, cut


def held_out(count: int, part: float) -> set[str]:
    split = Split.part(part)
    return {name for name in (f"{index}.txt" for index in range(count)) if split.holds_out(Document(name, b""))}


def test_held_out_documents_stay_when_others_are_added():
    names, more = held_out(200, 0.2), held_out(400, 0.2)
    assert 20 < len(names) < 60
    assert {name for name in more if int(name.removesuffix(".txt")) < 200} == names


def test_places_are_spread_evenly():
    places = [Document(str(index), b"").place for index in range(4000)]
    quarters = [sum(place * 4 // PLACES == quarter for place in places) for quarter in range(4)]
    assert all(900 < count < 1100 for count in quarters)


def test_both_sides_get_documents_however_small_the_part():
    documents = [Document(str(index), b"") for index in range(3)]
    for part in (1e-9, 1 - 1e-9):
        split = Split.part(part)
        for document in documents:
            split.holds_out(document)
        better = split.mended()
        assert better is not None
        held = [better.holds_out(document) for document in documents]
        assert sum(held) == (1 if part < 0.5 else 2)
        assert better.mended() is None


def test_a_single_document_is_cut_and_its_end_held_out():
    start, end = cut(Document("a", "ä".encode() * 100), 0.1)
    assert start.text.decode() == "ä" * 90
    assert end.text.decode() == "ä" * 10
