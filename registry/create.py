"""Fresh models from manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.manifest import Manifest
from .catalog import Settings, resolve

if TYPE_CHECKING:
    import torch

    from .hub_model import HubModel


def create_model(
    reference: str | Path | Mapping[str, Any] | Manifest,
    *,
    set: Settings = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> HubModel:
    """A model with freshly initialised weights.

    Args:
        reference: a catalog name, a path, a Hub id, manifest data, or a resolved manifest.
        set: changes on top, e.g. `{"block.attention.use": "gqa"}`.
        device: where it goes; `"meta"` allocates nothing.
        dtype: dtype of parameters and activations; None keeps what training under the precision component needs.
        seed: of the initialisation; parameters of equal name and shape start equally in all models of a seed.

    Raises:
        BestiaryError: with everything that is wrong with the manifest.
    """
    manifest = reference if isinstance(reference, Manifest) else resolve(reference, set=set)
    import torch

    from ..core.assemble import assemble, initialise
    from .hub_model import HubModel

    model = assemble(manifest, device=device, dtype=dtype, kind=HubModel)
    if torch.device(device).type != "meta":
        initialise(model, seed=seed)
    return model
