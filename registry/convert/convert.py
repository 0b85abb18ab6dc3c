"""The course of a conversion: everything is checked and planned from headers, then written file by file beside the target.

A folder `.NAME.converting` next to the target keeps the files that are done, with a journal of what they were made from. The same
command goes on there after an interruption; another source or other options begin anew. The target appears at the end, whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ..checkpoint import INDEX, SINGLE, Checkpoint, open_checkpoint
from ..header import read_header
from ..hub_errors import explained
from ..plan import make_plan
from ..progress import byte_bar
from ..pull import fetch_weights
from ..record import manifest_of
from ..repository import Folder, open_repository
from ..staging import check_replaceable, replace_folder
from .documents import converted_manifest, documents
from .names import FILE, to_deepseek, with_hub_names
from .options import Options
from .target import Made, targets
from .write import Writer

JOURNAL = "journal.json"


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    tensors: int
    nbytes: int
    kept: int
    """Files that an earlier, interrupted conversion had finished."""
    left_out: str
    """What the new form has no place for; empty when everything is there."""

    def __str__(self) -> str:
        text = f"{self.folder}: {self.tensors:,} tensors, {self.nbytes:,} bytes in {len(self.files)} files"
        text += f", {self.kept} of them done before" if self.kept else ""
        return f"{text}. {self.left_out}" if self.left_out else text


def convert(source: str | Path, target: str | Path, options: Options, *, overwrite: bool = False, progress: bool = False) -> ConvertReport:
    """Writes a checkpoint in another form. Memory stays at a few strips of a tensor, and the source is only read.

    Args:
        source: a folder, `organisation/name[@revision]` or `file:path[@revision]`.
        target: a folder, which appears when it is complete.
        options: the form.
        overwrite: replace a checkpoint that is there.
        progress: show a bar.

    Raises:
        BestiaryError: options contradict each other, the source is damaged or incomplete, numbers do not fit the new format, or
            the disk is full; nothing is at `target` then, and what is done is kept for the next try.
    """
    options.check()
    out = Path(target).expanduser().absolute()
    if out.exists() and not overwrite:
        raise BestiaryError(f"{target}: there is something already. Name another folder, or add --overwrite.")
    check_replaceable(out)
    repository = open_repository(source)
    folder = repository.path if isinstance(repository, Folder) else fetch_weights(repository, progress=progress)
    if out == folder.resolve():
        raise BestiaryError(f"{target}: source and target are one folder. Name another target.")
    checkpoint = _opened(folder)
    manifest, left_out = _manifest(folder, checkpoint, options)
    checkpoint = Checkpoint(folder, {n: t for n, t in checkpoint.tensors.items() if not left_out or not _beyond(n, manifest)})
    make_plan(manifest, checkpoint, stored_as=manifest)
    made = targets(manifest, checkpoint, options)
    block = options.block or manifest.hub.weight_block_size or (128, 128)
    staging = out.with_name(f".{out.name}.converting")
    kept = _begin(staging, _identity(checkpoint, options))
    files = _files(made, options)
    with explained(str(target)), byte_bar("converting", sum(m.nbytes for m in made), progress) as advance:
        writer = Writer(manifest.hub.weight_block_size, block, power_of_two=options.power_of_two_scales, advance=advance)
        done = _write(staging, files, kept, writer, options)
        index = _index(files, options) if len(files) > 1 else None
        for name, content in documents(folder, converted_manifest(manifest, options, block), options, index).items():
            (staging / name).write_bytes(content)
        (staging / JOURNAL).unlink()
        replace_folder(out, staging)
    return ConvertReport(out, tuple(sorted(files)), len(made), sum(m.nbytes for m in made), done, left_out)


def _opened(folder: Path) -> Checkpoint:
    """The source under the Hub's names."""
    single = folder / FILE
    if single.is_file() and not (folder / SINGLE).exists() and not (folder / INDEX).exists():
        return with_hub_names(Checkpoint(folder, {tensor.name: tensor for tensor in read_header(single)}))
    parts = [] if (folder / SINGLE).exists() or (folder / INDEX).exists() else sorted(folder.glob("model0-mp*.safetensors"))
    if parts:
        fact = f"{parts[0].name} is one of several parts that were cut for ranks."
        raise BestiaryError(Problem(fact, str(folder), f"Convert the Hub's checkpoint instead, or one cut for a single rank ({FILE})."))
    return with_hub_names(open_checkpoint(folder))


def _manifest(folder: Path, checkpoint: Checkpoint, options: Options) -> tuple[Manifest, str]:
    """The model to write, and what of the source has no place in it."""
    manifest = manifest_of(folder)
    if options.names == "hub":
        return manifest, ""
    foreign = sorted({part.use for path, part in manifest.parts() if path.endswith(".attention")} - {"mla"})
    if foreign:
        fact = f"its attention is {', '.join(foreign)}, and DeepSeek's code computes MLA only."
        raise BestiaryError(Problem(fact, str(folder), "Leave out --names deepseek."))
    if "mtp" not in manifest.objectives:
        return manifest, ""
    without = manifest_of(folder, set={"objective.mtp": False})
    return without, "The prediction layer (MTP) was left out: DeepSeek's code does not read one."


def _beyond(name: str, manifest: Manifest) -> bool:
    """Whether a tensor belongs to a layer behind the model's own."""
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and parts[2].isdecimal() and int(parts[2]) >= manifest.model.num_hidden_layers


def _identity(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """What the finished files were made from."""
    stats = {str(path): path.stat() for path in {tensor.file for tensor in checkpoint.tensors.values()}}
    return {
        "source": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in sorted(stats.items())],
        "options": json.loads(json.dumps(asdict(options))),
    }


def _begin(staging: Path, identity: dict[str, Any]) -> set[str]:
    """Files that are done; what is there of another conversion is removed."""
    try:
        held = json.loads((staging / JOURNAL).read_text(encoding="utf-8"))
        if {key: held[key] for key in identity} == identity:
            return {name for name in held["done"] if (staging / name).is_file()}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    _note(staging, {**identity, "done": []})
    return set()


def _note(staging: Path, journal: dict[str, Any]) -> None:
    part = staging / f".{JOURNAL}.part"
    part.write_text(json.dumps(journal), encoding="utf-8")
    part.replace(staging / JOURNAL)


def _files(made: Sequence[Made], options: Options) -> dict[str, list[Made]]:
    """File to tensors, in order."""
    if options.names == "deepseek":
        return {FILE: list(made)}
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    bytes_of = {one.name: torch.empty(one.nbytes, dtype=torch.uint8, device="meta") for one in made}
    split = split_torch_state_dict_into_shards(bytes_of, max_shard_size=options.max_shard_size)
    by_name = {one.name: one for one in made}
    return {file: [by_name[name] for name in names] for file, names in split.filename_to_tensors.items()}


def _write(staging: Path, files: dict[str, list[Made]], kept: set[str], writer: Writer, options: Options) -> int:
    """Writes what is not done yet; the number of files that were."""
    journal = json.loads((staging / JOURNAL).read_text(encoding="utf-8"))
    known = {SINGLE, FILE, JOURNAL, *files}
    for path in staging.iterdir():
        if path.name not in known:
            path.unlink()
    for name, tensors in files.items():
        if name not in kept:
            named = [(to_deepseek(one.name) if options.names == "deepseek" else one.name, one) for one in tensors]
            writer.write(staging / name, named)
            journal["done"].append(name)
            _note(staging, journal)
    return len(kept & files.keys())


def _index(files: dict[str, list[Made]], options: Options) -> dict[str, Any]:
    total = sum(one.nbytes for tensors in files.values() for one in tensors)
    return {"metadata": {"total_size": total}, "weight_map": {one.name: file for file, tensors in files.items() for one in tensors}}
