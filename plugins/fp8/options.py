"""Options of FP8 mixed-precision training (DeepSeek-V3 technical report, section 3.3 and appendix B)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...core.component import Options, Storage
from ...core.site import Site

if TYPE_CHECKING:
    from .precision import FP8

TILE = 128
"""Numbers that share a factor, and products between promotions."""


class FP8Options(Options):
    scales: Literal["power-of-two", "fp32"] = "power-of-two"
    """Factors as powers of two, rounded up (UE8M0 kept in fp32, as in DeepSeek-V3.1), or as they come out, as in DeepSeek-V3."""
    preset: Literal["deepseek-v3", "deepgemm", "te"] = "deepseek-v3"
    """Whose convention fp32 factors follow: `deepseek-v3` divides by the factor, `deepgemm` multiplies by its reciprocal, `te`
    multiplies by 448 / amax and knows no floor. Power-of-two factors give the same codes under each, above the floor."""
    floor: float = Field(default=1e-4, gt=1e-36)
    """Least amax of a tile of activations or weights."""
    gradient_floor: float = Field(default=2.0**-100, gt=1e-36)
    """Least amax of a tile of gradients. The published 1e-4 loses small ones: most of those with a spread of 1e-10 become zero."""
    activations: Literal["tile", "row", "tensor"] = "tile"
    """What shares a factor: `tile` is 1x128, one token and 128 channels; 128 tokens and one channel for weight gradients."""
    gradients: Literal["tile", "block", "row", "tensor"] = "tile"
    """The same for the gradients of activations; `block`, 128x128, is the variant that diverged (appendix B.2)."""
    weights: Literal["block", "row", "tensor"] = "block"
    """The same for weights; `block` is 128x128."""
    gradient_format: Literal["e4m3", "e5m2"] = "e4m3"
    """FP8 format of gradients; E5M2 has more range and one bit less."""
    accumulation: Literal["fp32", "hopper", "hopper-unpromoted"] = "fp32"
    """`fp32` sums in fp32; `hopper` models its tensor cores, which cut sums to 13 bits after every 32 products, and promotes
    them to fp32 every 128; `hopper-unpromoted` does not promote (section 3.3.2). Both models are slow."""
    saved_input: Literal["fp8", "bf16"] = "fp8"
    """What the backward pass keeps of a layer's input. FP8 codes are requantised along tokens there, as published."""
    saved_swiglu: Literal["fp8", "bf16"] = "fp8"
    """What the backward pass keeps of the inputs of SwiGLU, from which its gradients are computed: codes in 1x128 tiles, as published."""
    saved_attention: Literal["e5m6"] | None = None
    """What the backward pass keeps of the input of the projection after attention: `e5m6` is 12 bits with a power of two for 128
    channels, as published, 1.53 bytes a number; by default it is what `saved_input` says."""
    dispatched_gradients: Literal["bf16", "fp8"] = "bf16"
    """In which form gradients of experts' outputs reach the experts. `fp8`: codes in 1x128 tiles, from which weight gradients are computed
    too, and which travel as such where experts lie on several ranks, as published."""
    backend: Literal["auto", "emulation", "triton", "scaled_mm", "deepgemm"] = "auto"
    """What multiplies: `emulation`, on any device; `triton`, our kernels for NVIDIA GPUs of compute capability 8.9 and above; `scaled_mm`,
    torch's own, on Hopper; `deepgemm`, the library, on Hopper and data-centre Blackwell. `auto` takes what was measured to be faster
    on the device at hand; until then that is `emulation` everywhere."""

    @property
    def inputs_keep(self) -> bool:
        """Whether a layer makes the same codes again, and all else that it computes, of what its codes stand for."""
        return self.scales == "power-of-two" and self.activations == "tile" and self.saved_input == "fp8"

    def table(self) -> dict[str, Any]:
        """The options as manifest data; what was added later only where it differs from what was before, so that digests stay."""
        table = super().table()
        if self.saved_attention is None:
            del table["saved_attention"]
        if self.dispatched_gradients == "bf16":
            del table["dispatched_gradients"]
        return table


LIBRARIES = ("scaled_mm", "deepgemm")
"""Backends that multiply tiles of 1x128 with blocks of 128x128, or with each other, in E4M3, and nothing else."""


def build_fp8(options: FP8Options, site: Site) -> FP8:
    from .precision import FP8

    return FP8(options)


def fp8_check(options: FP8Options, site: Site) -> Iterator[str]:
    """What these options ask for that no backend does."""
    if options.backend not in ("auto", "emulation") and options.accumulation != "fp32":
        yield f"accumulation = '{options.accumulation}' is a model of hardware that only backend = 'emulation' computes."
    if options.backend in LIBRARIES:
        said = {"activations": "tile", "gradients": "tile", "weights": "block", "gradient_format": "e4m3"}
        for name, only in said.items():
            if (value := getattr(options, name)) != only:
                yield f"backend = '{options.backend}' has {name} = '{only}' only, not '{value}'. Set backend = 'emulation' or 'triton'."
    if options.dispatched_gradients == "fp8" and (options.gradients != "tile" or options.scales != "power-of-two"):
        yield (
            f"dispatched_gradients = 'fp8' needs codes that can be made again without loss, and gradients = '{options.gradients}' with "
            f"scales = '{options.scales}' makes none. Set gradients = 'tile' and scales = 'power-of-two', or leave it at 'bf16'."
        )


def fp8_describe(options: FP8Options) -> Mapping[str, str]:
    """What multiplies on this machine, and why; or why it cannot."""
    from .backends.select import described

    return described(options)


def fp8_storage(options: FP8Options) -> Storage:
    """Master weights, gradients and moments as in bf16 training; the copy that is computed with has one byte and its factors."""
    block = TILE * TILE if options.weights == "block" else TILE
    wide = {options.activations, options.gradients, options.weights} & {"row", "tensor"}
    code = 1 + 4 / TILE
    return Storage(
        copy=1 + 4 / block,
        inference=2,
        inference_high=2,
        tile=None if wide else TILE,
        dispatch=code if options.inputs_keep else None,
        dispatch_gradient=code if options.dispatched_gradients == "fp8" else None,
    )
