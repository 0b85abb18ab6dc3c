"""Verbs that speak to the Hub, and to `file:` registries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Json, octets, out, print_json, print_rows

Source = Annotated[str, typer.Argument(help="organisation/name[@revision], file:path[@revision], or a folder.")]


def pull(
    reference: Source,
    only: Annotated[
        list[str] | None,
        typer.Option(help='A part of the model, such as block.at."0:4" or objective.mtp, or a pattern on names; repeat.', metavar="PART"),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Only what this rank needs.")] = None,
    of: Annotated[int, typer.Option("--of", min=1, help="Number of ranks.")] = 1,
    layout: Annotated[str, typer.Option(help="How the ranks share the model, such as ep=8,pp=4.", metavar="KEY=N,...")] = "",
    ranges: Annotated[
        bool, typer.Option("--ranges", help="Only the bytes of the tensors that are needed, as smaller shards; needs --to.")
    ] = False,
    to: Annotated[Path | None, typer.Option(help="A folder for the files; the client's cache by default.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take what is in the cache, and name what is missing.")] = False,
    locked: Annotated[bool, typer.Option("--locked", help="Refuse other versions of plugins than the model was made with.")] = False,
    json: Json = False,
) -> None:
    """Fetches a checkpoint, or the part of it that is needed; a pull that was cut off goes on when repeated."""
    from ..registry.pull import pull as fetch

    folder = fetch(
        reference, only=only or (), rank=rank, of=of, layout=layout, ranges=ranges, to=to, offline=offline, locked=locked, progress=not json
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.relative_to(folder).parts[0].startswith("."))
    total = sum(path.stat().st_size for path in files)
    if json:
        print_json({"folder": str(folder), "files": [str(path.relative_to(folder)) for path in files], "bytes": total})
        return
    out.print(f"{folder}: {len(files):,} files, {octets(total)}", soft_wrap=True)


def list_hub(query: str, limit: int, json: bool) -> None:
    """What a search on the Hub finds."""
    from dataclasses import asdict

    from ..registry.hub import search

    found = search(query, limit=limit)
    if json:
        print_json([asdict(model) for model in found])
        return
    rows = [[m.id + (" (private)" if m.private else ""), f"{m.downloads:,}", f"{m.likes:,}", m.library] for m in found]
    print_rows("", ["repository", "downloads", "likes", "library"], rows, right=(1, 2))
