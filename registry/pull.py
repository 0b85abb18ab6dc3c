"""Fetching a repository: everything, some parts of the model, or what one rank needs; whole files, or byte ranges of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..core.errors import BestiaryError
from ..core.layout import Layout, parse_layout
from ..core.manifest import Manifest
from ..core.table import entries
from .checkpoint import INDEX, SINGLE, weight_map
from .fresh import selected
from .layout import SCALE
from .record import RECORD, manifest_of
from .repository import Repository, open_repository

CONFIGS = ("config.json", "generation_config.json", RECORD)
BESIDE = (".json", ".md", ".txt", ".model", ".jinja", ".tiktoken")
"""Endings of the small files that belong to a model: tokenizer, card, licence. Code and pickles are never fetched."""


def pull(
    reference: str | Path,
    *,
    only: Sequence[str] = (),
    rank: int | None = None,
    of: int = 1,
    layout: str = "",
    ranges: bool = False,
    to: str | Path | None = None,
    offline: bool = False,
    locked: bool = False,
    progress: bool = False,
) -> Path:
    """Fetches a model's files at the commit that its revision names now, and returns the folder in which they are.

    What is already there is not fetched again, so a pull that was cut off goes on when it is repeated.

    Args:
        reference: `organisation/name[@revision]`, `file:path[@revision]`, or a folder.
        only: parts of the model, such as `block.at."0:4"`, `block.attention`, `objective.mtp`, or patterns on parameter names;
            the files that hold them are fetched.
        rank: one rank of `of`: the files that hold what it needs are fetched.
        of: number of ranks.
        layout: how the ranks share the model, such as `ep=8,pp=4`; by default each holds an equal part of every parameter.
        ranges: fetch just the bytes of the tensors that are needed, and write them as smaller shards; needs `to`.
        to: a folder to put the files in; by default the client's cache.
        offline: take what is in the cache, and name what is missing.
        locked: refuse other versions of the plugins than those that `bestiary.json` names, instead of warning.
        progress: show bars.

    Raises:
        BestiaryError: the reference, a selector or the layout is wrong, or something cannot be fetched.
    """
    repository = open_repository(reference, offline=offline)
    target = Path(to) if to is not None else None
    if ranges and target is None:
        raise BestiaryError("--ranges makes files that the repository does not hold. Say where with --to FOLDER.")
    held = [file.path for file in repository.files()]
    folder = repository.fetch(small_files(held), progress=progress)
    if RECORD in held:
        manifest_of(folder, locked=locked)
    wanted = _wanted(folder, only, rank, of, layout)
    if ranges:
        from .ranges import fetch_ranges

        assert target is not None
        repository.fetch([name for name in small_files(held) if name != INDEX], to=target)
        return fetch_ranges(repository, folder, wanted, target, progress=progress)
    shards = _shards(repository, folder, held, wanted)
    names = [*small_files(held), *shards]
    return repository.fetch(names, to=target, progress=progress)


def fetch_weights(repository: Repository, *, progress: bool = False) -> Path:
    """The local folder with a repository's configs, index and safetensors; nothing else of it is fetched.

    Raises:
        BestiaryError: it holds no safetensors, or cannot be fetched.
    """
    folder, held = fetch_configs(repository), [file.path for file in repository.files()]
    return repository.fetch([*_configs(held), *_shards(repository, folder, held, None)], progress=progress)


def fetch_configs(repository: Repository) -> Path:
    """The local folder with a repository's configs and index, without its weights."""
    return repository.fetch(_configs([file.path for file in repository.files()]))


def _configs(held: Sequence[str]) -> list[str]:
    return [name for name in (*CONFIGS, INDEX) if name in held]


def needed(manifest: Manifest, *, only: Sequence[str] = (), layout: Layout | None = None, rank: int = 0) -> set[str]:
    """Names of the Hub tensors from which some parameters are filled, in every layout that a checkpoint may have.

    Args:
        manifest: the model.
        only: selectors; all parameters when empty.
        layout: how ranks share the model; None for one rank with all of it.
        rank: whose parameters.
    """
    from .ranks import check_ranks, held_by
    from .regions import overlap

    own = [entry for entry in entries(manifest) if not entry.weight.duplicate_of]
    names = selected(own, only, manifest, option="--only") if only else {entry.name for entry in own}
    if layout:
        check_ranks(manifest, layout)
    regions = held_by(manifest, layout, rank) if layout else None
    found: set[str] = set()
    for entry in own:
        if entry.name in names and (regions is None or entry.name in regions):
            pieces = [piece for pieces in entry.layouts() for piece in pieces]
            if regions is not None:
                pieces = [piece for piece in pieces if overlap(entry.weight.shape, piece.region, regions[entry.name])]
            found.update(piece.hub for piece in pieces)
    return found


def rank_layout(rank: int, of: int, layout: str) -> Layout:
    """The layout of `of` ranks; without a text, each holds an equal part of every parameter.

    Raises:
        BestiaryError: there is no such rank or layout.
    """
    if not 0 <= rank < of:
        raise BestiaryError(f"--rank {rank}: the ranks of --of {of} are 0 to {of - 1}.")
    return parse_layout(layout, of) if layout else Layout(dp=of, zero=3)


def _wanted(folder: Path, only: Sequence[str], rank: int | None, of: int, layout: str) -> set[str] | None:
    """Names of the tensors to fetch, scales included; None for all."""
    if not only and rank is None:
        if of != 1 or layout:
            raise BestiaryError(f"--of {of} alone does not say which part to fetch. Add --rank.")
        return None
    plan = rank_layout(rank, of, layout) if rank is not None else None
    names = needed(manifest_of(folder), only=only, layout=plan, rank=rank or 0)
    return names | {name + SCALE for name in names}


def small_files(held: Sequence[str]) -> list[str]:
    """Configs, index, tokenizer, card and licence; of folders inside of the repository, nothing."""
    return [n for n in held if "/" not in n and (n.endswith(BESIDE) or n.upper().startswith(("LICENSE", "NOTICE")))]


def _shards(repository: Repository, folder: Path, held: Sequence[str], wanted: set[str] | None) -> list[str]:
    if SINGLE in held and INDEX not in held:
        return [SINGLE]
    if INDEX not in held:
        raise BestiaryError(_no_weights(repository, held))
    table = weight_map(folder / INDEX)
    shards = sorted({file for name, file in table.items() if wanted is None or name in wanted})
    absent = [name for name in shards if name not in held]
    if absent:
        where = "not in the cache" if repository.commit and getattr(repository, "offline", False) else "not there"
        remedy = f"Pull them while online: bestiary pull {repository.reference}" if "cache" in where else "Ask its owner to complete it."
        raise BestiaryError(f"{repository.reference}: {INDEX} names files that are {where}: {', '.join(absent[:5])}. {remedy}")
    if not shards:
        raise BestiaryError(f"{repository.reference}: no tensor of {INDEX} belongs to what was asked for.")
    return shards


def _no_weights(repository: Repository, held: Sequence[str]) -> str:
    pickles = [name for name in held if PurePosixPath(name).suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        return (
            f"{repository.reference}: its weights are in pickle files ({pickles[0]}), which can run code when read, and are not fetched. "
            "Ask its owner for safetensors, or convert it where you trust it: transformers' save_pretrained writes them."
        )
    return f"{repository.reference}: it holds neither {SINGLE} nor {INDEX}. Check the reference: this one has no weights to load."
