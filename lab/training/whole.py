"""A model in one piece, from the parts that many processes have of it."""

from __future__ import annotations

from torch import Tensor

from ...core.assemble import assemble, state
from ...core.backbone import CausalLM
from ...core.manifest import Manifest
from ...registry.hub_model import HubModel


def whole_model(manifest: Manifest) -> CausalLM:
    """The model with all of its layers here, on the CPU and unfilled, whatever other processes hold."""
    return assemble(manifest, kind=HubModel, place=False)


def tensors_of(model: CausalLM) -> dict[str, Tensor]:
    """Its parameters and persistent buffers by name, detached."""
    return {name: tensor.detach() for name, tensor in state(model).items()}
