"""A model in one piece, from the parts that many processes have of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.assemble import assemble, state
from ...core.backbone import CausalLM
from ...core.distributed.cuts import fill
from ...core.manifest import Manifest
from ...registry.hub_model import HubModel


def whole_model(manifest: Manifest) -> CausalLM:
    """The model with all of its layers here, on the CPU and unfilled, whatever other processes hold."""
    return assemble(manifest, kind=HubModel, place=False)


def spread(manifest: Manifest, whole: CausalLM, device: torch.device) -> CausalLM:
    """The model as this process holds it, with the weights of a whole one."""
    model = assemble(manifest, device=device, kind=HubModel)
    tensors = tensors_of(whole)
    for name, tensor in tensors_of(model).items():
        fill(tensor, tensors[name].to(tensor.device), model.cuts.get(name))
    model.load_report = whole.load_report
    return model


def tensors_of(model: CausalLM) -> dict[str, Tensor]:
    """Its parameters and persistent buffers by name, detached."""
    return {name: tensor.detach() for name, tensor in state(model).items()}
