"""Checkpoints into models: resolve, read headers, plan, assemble on meta, allocate, fill.

Nothing is allocated before the plan stands, and nothing is read twice: memory is the parameters plus small buffers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BestiaryError, Problem
from ..core.manifest import Manifest
from .catalog import Settings, list_models, resolve
from .checkpoint import open_checkpoint
from .plan import Plan, make_plan
from .progress import Advance, byte_bar
from .pull import fetch_weights
from .record import manifest_of, named
from .report import make_report
from .repository import Folder, open_repository
from .surgery import operate, plan_surgery

if TYPE_CHECKING:
    import torch

    from ..core.backbone import CausalLM
    from .fill import ReaderName
    from .hub_model import HubModel
    from .repository import Repository


def load(
    reference: str | Path | Repository,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    set: Settings = (),
    init: Sequence[str] = (),
    convert: Sequence[str] = (),
    seed: int = 0,
    threads: int | None = None,
    reader: ReaderName = "pread",
    locked: bool = False,
    progress: bool = False,
) -> HubModel:
    """A model with the weights of a checkpoint, in evaluation mode; `model.load_report` says what was taken from where.

    Args:
        reference: a folder in the Hub's layout (`config.json` or `bestiary.json`, and safetensors), `organisation/name[@revision]`,
            `file:path[@revision]`, or an opened repository.
        dtype: of parameters and activations; None keeps each parameter as stored, with bf16 for FP8 blocks. Selection
            biases stay at least fp32. Under a precision component that computes from FP8 blocks (`precision.use = "fp8"`) these
            stay as stored in any case.
        device: where it goes; the CPU by default.
        set: changes to the manifest, e.g. `{"block.attention.use": "gqa"}`.
        init: what gets fresh weights instead of stored ones: parts of the manifest (`"block.attention"`, `"objective.mtp"`) or
            patterns on parameter names. Nothing is initialised that is not named here.
        convert: parts whose stored weights are those of another component, or have other options, and are converted as the new
            component declares (`"block.attention"`), or `"model.vocab_size"`.
        seed: of those fresh weights.
        threads: how many read at once; as many as there are processors, at most 8, by default.
        reader: `pread`, or `mmap`, which is slow on network disks and may be faster on local ones.
        locked: refuse other versions of the plugins than those that `bestiary.json` names, instead of warning.
        progress: show a bar.

    Raises:
        BestiaryError: the manifest has problems, files are damaged, or tensors are missing, unexpected or misshapen; lists all.
    """
    from ..core.assemble import assemble, state
    from ..core.distributed import world
    from .hub_model import HubModel
    from .kept import keep_blocks

    started = time.perf_counter()
    folder, name = _folder(reference, progress)
    if reader not in ("pread", "mmap"):
        raise BestiaryError(f"reader='{reader}': there is no such way to read. Known: pread, mmap.")
    manifest = named(manifest_of(folder, set=set, locked=locked), name)
    stored_as = manifest_of(folder) if set else manifest
    checkpoint = open_checkpoint(folder)
    surgery = plan_surgery(manifest, stored_as, convert)
    plan = make_plan(manifest, checkpoint, stored_as=stored_as, dtype=dtype, init=(*init, *surgery.names))
    model = assemble(manifest, device="meta", dtype=plan.compute_dtype, kind=HubModel, place=not world.active())
    if not (world.active() or model.cuts):
        keep_blocks(model, plan)
    _fill(model, plan, device, seed, threads, reader, progress)
    converted = operate(surgery, checkpoint, state(model), plan, threads=threads) if convert else ()
    model.load_report = make_report(folder, plan, time.perf_counter() - started, converted)
    return model.eval()


def compute_dtype(reference: str | Path, *, set: Settings = ()) -> torch.dtype:
    """What the model of a checkpoint computes in. Loading in it halves memory and is faster; master weights are for training."""
    manifest = resolve(str(reference), set=set)
    return manifest.precision.build(manifest.site).compute_dtype


def load_for_training(
    manifest: Manifest,
    reference: str | Path,
    *,
    device: torch.device | str | None = None,
    init: Sequence[str] = (),
    convert: Sequence[str] = (),
    seed: int = 0,
    progress: bool = False,
) -> HubModel:
    """The model of `manifest` with the weights of a checkpoint, stored as training under its precision component needs; whole, also
    where several processes compute together.

    Args:
        manifest: the model to train; where it differs from the checkpoint's own, `init` names what starts fresh.
        reference: as for `load`.
        device: where it goes; the CPU by default.
        init: as for `load`.
        convert: as for `load`.
        seed: of fresh weights.
        progress: show a bar.

    Raises:
        BestiaryError: as `load` does.
    """
    from ..core.assemble import assemble, state
    from ..core.distributed import world
    from .hub_model import HubModel

    started = time.perf_counter()
    folder, _ = _folder(reference, progress)
    checkpoint = open_checkpoint(folder)
    surgery = plan_surgery(manifest, manifest_of(folder), convert)
    plan = make_plan(manifest, checkpoint, stored_as=surgery.stored_as, init=(*init, *surgery.names), training=True)
    model = assemble(manifest, device="meta", kind=HubModel, place=not world.active())
    _fill(model, plan, device, seed, None, "pread", progress)
    converted = operate(surgery, checkpoint, state(model), plan, threads=None) if convert else ()
    model.load_report = make_report(folder, plan, time.perf_counter() - started, converted, manifest.precision.describe())
    return model.train()


def _folder(reference: str | Path | Repository, progress: bool = False) -> tuple[Path, str]:
    """The local folder that a reference names, fetched if need be, and the model's name where the folder's own says nothing."""
    if not isinstance(reference, str | Path):
        repository = reference
    elif str(reference) in list_models() and not Path(reference).is_dir():
        raise BestiaryError(
            f"'{reference}' is a manifest, and its weights are not here. Give a folder of weights, or the repository that "
            f"`bestiary show {reference}` names; bestiary.create_model makes a model with fresh weights."
        )
    else:
        repository = open_repository(reference)
    if isinstance(repository, Folder):
        return repository.path, ""
    return fetch_weights(repository, progress=progress), repository.name


def _fill(
    model: CausalLM,
    plan: Plan,
    device: torch.device | str | None,
    seed: int,
    threads: int | None,
    reader: ReaderName,
    progress: bool,
) -> None:
    """Allocates what `plan` says and fills it."""
    import torch

    from ..core.assemble import allocate, initialise, state
    from ..core.table import own_entries
    from .fill import fill
    from .kept import check_factors

    for name, tensor in state(model).items():
        tensor.data = tensor.data.to(plan.dtypes[name])
    allocate(model, own_entries(model.manifest), torch.device(device or "cpu"))
    with byte_bar("loading", plan.nbytes, progress) as advance:
        _check_tied(plan, advance)
        fill(plan.reads, state(model), threads=threads, reader=reader, advance=advance)
    check_factors(plan, state(model))
    if plan.initialised:
        initialise(model, seed=seed, only=plan.initialised)


def _check_tied(plan: Plan, advance: Advance | None) -> None:
    from .fill import check_equal

    for kept, copy in plan.equal:
        if not check_equal(kept, copy, advance=advance):
            fact = f"{copy.name} differs from {kept.name}, although the embeddings are tied."
            raise BestiaryError(Problem(fact, str(copy.file), "Pass set={'model.tie_word_embeddings': False} to keep the head."))
