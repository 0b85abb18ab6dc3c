"""Where a component stands: all that it may know of the model around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .component import Part
    from .contracts import GroupedLayer, LinearLayer, Precision
    from .layers.norm import RMSNorm
    from .weights import After, Role


@dataclass(frozen=True)
class Site:
    """The dimensions that parts share, this part's layer, and the makers of its linear layers.

    `weights` and `cost` of a component receive a site without precision; `build` receives one with it.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    rms_norm_eps: float
    layer: int | None = None
    """Index of the layer, from 0; `num_hidden_layers + j` for the j-th block that an objective adds."""
    precision: Precision | None = None
    block: tuple[Part, Part] | None = None
    """Attention and ffn of the last block, for objectives that add blocks like it."""

    def at(self, layer: int) -> Site:
        """The same site in another layer."""
        return replace(self, layer=layer)

    def linear(self, d_in: int, d_out: int, *, role: Role = "linear", bias: bool = False, after: After = "") -> LinearLayer:
        """A linear layer `[..., d_in] -> [..., d_out]` as the precision component makes it.

        An attention component says `after="attention"` of the projection that reads what its heads made.
        """
        return self._maker().linear(d_in, d_out, role=role, bias=bias, after=after)

    def grouped(self, experts: int, d_in: int, d_out: int, *, role: Role = "expert") -> GroupedLayer:
        """Stacked linear layers, one per expert: rows sorted by expert, `[N, d_in] -> [N, d_out]`."""
        return self._maker().grouped(experts, d_in, d_out, role=role)

    def norm(self, size: int, *, eps: float | None = None, before: Role | None = None) -> RMSNorm:
        """An RMSNorm over the last dimension, with the model's epsilon unless told otherwise.

        `before` is the role of the linear layers that read the result, if any do: the precision component may make what they need at once.
        """
        from .layers.norm import RMSNorm

        eps = self.rms_norm_eps if eps is None else eps
        if before is None or (make := getattr(self.precision, "norm", None)) is None:
            return RMSNorm(size, eps=eps)
        return make(size, eps=eps, before=before)

    def child(self, part: Part, site: Site | None = None) -> Any:
        """Builds a sub-slot's component (a router, say) at this site, or at one that says more to it."""
        return part.build(site or self)

    def _maker(self) -> Precision:
        if self.precision is None:
            raise AssertionError("this site has no precision: weights() and cost() may not build")
        return self.precision
