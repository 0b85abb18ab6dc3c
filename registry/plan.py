"""Which bytes of a checkpoint go where in a model, decided from headers alone, before anything is read or allocated.

Every tensor of the checkpoint ends in exactly one place: read, known as a duplicate, or skipped for a stated reason; every
parameter of the model is filled completely, from the checkpoint or because `init` names it. Anything else is an error, and
all of them are reported together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..core.manifest import Manifest
from ..core.table import entries
from ..core.weights import Entry, Piece
from .checkpoint import Checkpoint
from .dtypes import FLOATS, FP8, torch_dtype
from .findings import Findings
from .fresh import selected
from .header import Stored
from .layout import SCALE, Block, original, scale_shape
from .regions import Region, overlap

if TYPE_CHECKING:
    import torch

    from ..core.contracts import Precision

HEAD = "lm_head.weight"
IGNORABLE = ".rotary_emb.inv_freq"
"""Ends the names of buffers that old versions of transformers saved; they follow from the config."""


@dataclass(frozen=True)
class Read:
    """One stored tensor and the region of a parameter that it fills."""

    source: Stored
    target: str
    region: tuple[int | slice, ...]
    op: Literal["copy", "cast", "dequantise", "keep"]
    """`keep` is of FP8 codes, and of their factors, that stay as they are."""
    scale: Stored | None = None
    block: Block = (1, 1)
    skip: int = 0
    """Rows of the first FP8 block that come before the first row of `source`."""
    columns: tuple[int, int] | None = None
    """First and last column (exclusive) that are taken of each row; None for all."""
    row: int = 0
    """Where `source` begins in the stored tensor when it is some rows of it."""

    @property
    def nbytes(self) -> int:
        taken = self.source.nbytes
        if self.columns:
            taken = taken // self.source.shape[-1] * (self.columns[1] - self.columns[0])
        return taken + (self.scale.nbytes if self.scale else 0)


@dataclass(frozen=True)
class Skipped:
    """A stored tensor that is not read, and why."""

    source: Stored
    why: str


@dataclass
class Plan:
    """What a load will do."""

    compute_dtype: torch.dtype
    reads: list[Read] = field(default_factory=list)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """Of every parameter and persistent buffer."""
    equal: list[tuple[Stored, Stored]] = field(default_factory=list)
    """Pairs that must hold the same bytes: a stored head in a model with tied embeddings; every duplicate if that was asked for."""
    duplicates: list[tuple[Stored, str]] = field(default_factory=list)
    """Known copies, which are not read, and the parameter that each is a copy of."""
    skipped: list[Skipped] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(read.nbytes for read in self.reads) + sum(2 * a.nbytes for a, _ in self.equal)


def make_plan(
    manifest: Manifest,
    checkpoint: Checkpoint,
    *,
    stored_as: Manifest | None = None,
    dtype: torch.dtype | None = None,
    init: Iterable[str] = (),
    training: bool = False,
    regions: Mapping[str, Region] | None = None,
    compare: bool = False,
) -> Plan:
    """The plan for loading `checkpoint` into the model of `manifest`.

    Args:
        manifest: the model to be filled.
        checkpoint: what there is.
        stored_as: the checkpoint's own manifest where `manifest` has changes; what only it knows is skipped, not unexpected.
        dtype: of all parameters; None keeps what is stored, with bf16 for FP8. Selection biases stay at least fp32.
        init: what is initialised instead of read; see `fresh`.
        training: keep every parameter in the dtype that training under the precision component needs, and compute in its own.
        regions: what is held of each parameter, by name; stored tensors that fill nothing of it may be absent. None for all.
        compare: have every duplicate, such as the embedding of a prediction block, compared with what it is a copy of.

    Raises:
        BestiaryError: tensors are missing, unexpected, of the wrong shape or of an unknown dtype; lists all of them.
    """
    planner = _Planner(manifest, checkpoint, dtype, training, regions)
    fresh = selected(list(planner.own), init, manifest)
    for entry in planner.own:
        planner.take(entry) if entry.name not in fresh else planner.leave(entry)
    planner.duplicates(compare)
    planner.leftovers(stored_as or manifest, fresh)
    planner.findings.stop(checkpoint.folder)
    planner.choose_dtypes()
    return planner.plan


class _Planner:
    def __init__(
        self,
        manifest: Manifest,
        checkpoint: Checkpoint,
        dtype: torch.dtype | None,
        training: bool,
        regions: Mapping[str, Region] | None,
    ) -> None:
        self.manifest, self.dtype, self.training, self.regions = manifest, dtype, training, regions
        self.precision: Precision = manifest.precision.build(manifest.site)
        self.plan = Plan(dtype or self.precision.compute_dtype)
        self.tensors, self.unused = checkpoint.tensors, dict(checkpoint.tensors)
        self.all = entries(manifest)
        self.own = [e for e in self.all if not e.weight.duplicate_of and (regions is None or e.name in regions)]
        self.findings = Findings(self.own)

    def take(self, entry: Entry) -> None:
        """Plans the reads that fill one parameter, in the layout that the checkpoint has."""
        for piece in self._layout(entry):
            if self.regions is not None and not overlap(entry.weight.shape, piece.region, self.regions[entry.name]):
                continue
            stored = self.unused.pop(piece.hub, None)
            if stored is None:
                self.findings.missing(entry, piece.hub)
            elif stored.shape != piece.shape:
                self.findings.misshapen(stored, piece.shape, entry)
            else:
                self._read(entry, piece, stored)

    def leave(self, entry: Entry) -> None:
        """Notes a parameter that is initialised, and skips what the checkpoint has for it."""
        self.plan.initialised.append(entry.name)
        for layout in entry.layouts():
            for piece in layout:
                self._skip(piece.hub, "initialised instead, as `init` asks")

    def duplicates(self, compare: bool) -> None:
        for entry in self.all:
            if entry.weight.duplicate_of and (stored := self.unused.pop(entry.pieces[0].hub, None)):
                if stored.shape != entry.weight.shape:
                    self.findings.misshapen(stored, entry.weight.shape)
                self.plan.duplicates.append((stored, original(entry, self.manifest)))
                if compare and (first := self.tensors.get(original(entry, self.manifest))):
                    self.plan.equal.append((first, stored))
        embedding = self.tensors.get("model.embed_tokens.weight")
        if self.manifest.model.tie_word_embeddings and embedding and (head := self.unused.pop(HEAD, None)):
            if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
                self.findings.misshapen(head, embedding.shape)
            self.plan.duplicates.append((head, embedding.name))
            self.plan.equal.append((embedding, head))

    def leftovers(self, stored_as: Manifest, fresh: set[str]) -> None:
        """Finds a reason for every tensor that nothing has asked for, or reports it."""
        known = set()
        if self.unused and (stored_as is not self.manifest or fresh or self.regions is not None):
            known = {piece.hub for entry in entries(stored_as) for layout in entry.layouts() for piece in layout}
        for name, stored in list(self.unused.items()):
            if name.endswith(IGNORABLE):
                self._skip(name, "follows from the config")
            elif name in known or (name.removesuffix(SCALE) in known and self._has_weight(name)):
                self._skip(name, "left out, as `set` asks" if self.regions is None else "for other ranks")
            else:
                self.findings.unexpected(stored)

    def _has_weight(self, scale: str) -> bool:
        """Whether scales belong to FP8 codes; those of a rank's neighbours may be in files that are not there."""
        weight = self.tensors.get(scale.removesuffix(SCALE))
        return weight.dtype == FP8 if weight else self.regions is not None

    def choose_dtypes(self) -> None:
        """Gives every parameter its dtype, and every read the operation that follows from it."""
        found: dict[str, torch.dtype] = {}
        weight = Counter()
        for read in self.plan.reads:
            stored = torch_dtype(read.source.dtype)
            weight[stored] += read.source.nbytes
            found[read.target] = _wider(found.get(read.target), stored)
        if self.dtype is None and weight and not self.training:
            self.plan.compute_dtype = weight.most_common(1)[0][0]
        for entry in self.own:
            wanted = self.dtype or found.get(entry.name, self.plan.compute_dtype)
            precision = self.precision if self.training else self.precision.cast(wanted)
            self.plan.dtypes[entry.name] = precision.storage_dtype(entry.weight.role)
        self.plan.reads = [self._with_op(read) for read in self.plan.reads]

    def _layout(self, entry: Entry) -> list[Piece]:
        layouts = entry.layouts()
        return max(layouts, key=lambda layout: sum(piece.hub in self.unused for piece in layout) / len(layout))

    def _read(self, entry: Entry, piece: Piece, stored: Stored) -> None:
        if stored.dtype == FP8:
            self._read_quantised(entry, piece, stored)
        elif stored.dtype in FLOATS:
            self.plan.reads.append(Read(stored, entry.name, piece.region, "copy"))
        else:
            self.findings.add(stored, f"its dtype {stored.dtype} is no format of weights here", f"Known: {', '.join(FLOATS)}, {FP8}.")

    def _read_quantised(self, entry: Entry, piece: Piece, stored: Stored) -> None:
        block, scale = self.manifest.hub.weight_block_size, self.unused.pop(piece.hub + SCALE, None)
        if block is None:
            remedy = "Add quantization_config with weight_block_size to config.json; it cannot be told from shapes."
            self.findings.add(stored, "it is FP8, and no block size is given", remedy)
        elif scale is None:
            self.findings.add(stored, f"its scales {piece.hub + SCALE} are missing", "Fetch the checkpoint again.")
        elif scale.shape != scale_shape(piece.shape, block):
            self.findings.misshapen(scale, scale_shape(piece.shape, block))
        elif scale.dtype not in FLOATS:
            self.findings.add(scale, f"its dtype {scale.dtype} is no format of scales here", f"Known: {', '.join(FLOATS)}.")
        else:
            self.plan.reads.append(Read(stored, entry.name, piece.region, "dequantise", scale, block))

    def _with_op(self, read: Read) -> Read:
        if read.op == "dequantise" or torch_dtype(read.source.dtype) == self.plan.dtypes[read.target]:
            return read
        return Read(read.source, read.target, read.region, "cast")

    def _skip(self, name: str, why: str) -> None:
        for each in (name, name + SCALE):
            if stored := self.unused.pop(each, None):
                self.plan.skipped.append(Skipped(stored, why))


def _wider(known: torch.dtype | None, new: torch.dtype) -> torch.dtype:
    import torch

    return new if known is None else torch.promote_types(known, new)
