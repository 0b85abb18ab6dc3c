"""Options of the moe component and its routers, and what follows from them without building anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ...core.component import Cost, Options, Part, SubSlot
from ...core.site import Site
from ...core.weights import PerExpert, Weight, packed, swiglu
from .hookspecs import RouterSite

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.surgery import Made
    from .moe import MixtureOfExperts
    from .routers import SigmoidGroup, Softmax, SoftmaxGroup


class MoEOptions(Options):
    n_routed_experts: int = Field(gt=0)
    """Experts to choose from (E)."""
    num_experts_per_tok: int = Field(gt=0)
    """Experts that each token goes to (K)."""
    n_shared_experts: int = Field(default=0, ge=0)
    """Experts that every token goes to, built as one of this many times the width."""
    intermediate_size: int = Field(gt=0)
    """Hidden width of one expert (`moe_intermediate_size` on the Hub)."""
    aux_loss_alpha: float = Field(default=0.0, ge=0)
    """Weight of the balance loss (DeepSeek-V3, equations 17 to 20); uniform routing gives a loss of `aux_loss_alpha`."""
    seq_aux: bool = True
    """Whether the balance loss is taken in each sequence and averaged, or once over the whole micro-batch."""
    router: Annotated[Part, SubSlot("router")]
    """How experts are chosen."""
    kernels: Literal["torch", "triton"] = "torch"
    """What routes (`sigmoid-group`), moves rows and, where the precision's products are plain ones, multiplies: torch, or our Triton
    kernels on an NVIDIA GPU, in bf16, fp16 or fp32. Results are the same up to rounding; torch is the default until the kernels were
    measured to be faster."""

    def table(self) -> dict[str, Any]:
        """The options as manifest data, `kernels` only if it is not torch: else it says nothing about a model, and changes no digest."""
        table = super().table()
        if self.kernels == "torch":
            del table["kernels"]
        return table


def router_site(options: MoEOptions, site: Site) -> RouterSite:
    """Where the router of a layer at `site` stands."""
    shared = {f.name: getattr(site, f.name) for f in fields(Site)}
    experts, k = options.n_routed_experts, options.num_experts_per_tok
    return RouterSite(**shared, n_routed_experts=experts, num_experts_per_tok=k, kernels=options.kernels)


def check(options: MoEOptions, site: Site) -> Iterator[str]:
    experts, k = options.n_routed_experts, options.num_experts_per_tok
    if k > experts:
        yield f"num_experts_per_tok = {k} exceeds n_routed_experts = {experts}. Use at most {experts}."
    else:
        yield from options.router.check(router_site(options, site))


def weights(options: MoEOptions, site: Site) -> list[Weight]:
    experts, d, hidden = options.n_routed_experts, site.hidden_size, options.intermediate_size
    router = [replace(w, name=f"gate.{w.name}") for w in options.router.weights(router_site(options, site))]

    def stacked(name: str, rows: int, columns: int, *parts: str) -> Weight:
        active = options.num_experts_per_tok * rows * columns
        return Weight(
            f"experts.{name}.weight", (experts, rows, columns), "expert", "expert", active=active, layouts=(PerExpert(parts), packed)
        )

    shared = swiglu("shared_experts", d, options.n_shared_experts * hidden) if options.n_shared_experts else []
    return [
        *router,
        stacked("gate_up_proj", 2 * hidden, d, "gate_proj", "up_proj"),
        stacked("down_proj", d, hidden, "down_proj"),
        *shared,
    ]


def cost(options: MoEOptions, site: Site) -> Cost:
    k, hidden, d = options.num_experts_per_tok, options.intermediate_size, site.hidden_size
    routed, shared = k * (d + 4 * hidden), 3 * options.n_shared_experts * hidden
    return Cost(
        saved_elements=d + routed + shared,
        cut_elements=shared,
        dealt_elements=routed,
        saved_fp32=d + options.n_routed_experts + 5 * k,
    )


class RouterOptions(Options):
    norm_topk_prob: bool = False
    """Whether the chosen experts' weights are divided by their sum."""
    routed_scaling_factor: float = Field(default=1.0, gt=0)
    """What the routed experts' outputs are multiplied by."""


class SigmoidGroupOptions(RouterOptions):
    norm_topk_prob: bool = True
    """Whether the chosen experts' weights are divided by their sum."""
    n_group: int = Field(default=1, gt=0)
    """Groups of neighbouring experts, one per node in DeepSeek-V3's training."""
    topk_group: int = Field(default=1, gt=0)
    """Groups in which a token may choose its experts."""
    bias_update_speed: float = Field(default=0.001, ge=0)
    """Gamma: how far a step moves each expert's selection bias towards balance; 0 keeps the bias as it is."""


class SoftmaxOptions(RouterOptions):
    """A weight is normalised or scaled, never both, as in DeepSeek-V2."""


class SoftmaxGroupOptions(SoftmaxOptions):
    n_group: int = Field(default=1, gt=0)
    """Groups of neighbouring experts."""
    topk_group: int = Field(default=1, gt=0)
    """Groups in which a token may choose its experts."""


def softmax_check(options: SoftmaxOptions, site: RouterSite) -> Iterator[str]:
    if options.norm_topk_prob and options.routed_scaling_factor != 1:
        yield (
            f"norm_topk_prob = true and routed_scaling_factor = {options.routed_scaling_factor} exclude each other: "
            "DeepSeek-V2's rule normalises or scales. Set one of them back."
        )


def group_check(options: SigmoidGroupOptions | SoftmaxGroupOptions, site: RouterSite) -> Iterator[str]:
    experts, groups, kept, k = site.n_routed_experts, options.n_group, options.topk_group, site.num_experts_per_tok
    if isinstance(options, SoftmaxOptions):
        yield from softmax_check(options, site)
    if experts % groups:
        fitting = [n for n in range(1, min(experts, 64) + 1) if experts % n == 0]
        yield f"n_group = {groups} does not divide {experts} experts. Use one of {fitting}."
    elif kept > groups:
        yield f"topk_group = {kept} exceeds n_group = {groups}. Use at most {groups}."
    elif kept * (experts // groups) < k:
        yield f"{kept} groups of {experts // groups} experts hold fewer than num_experts_per_tok = {k}. Raise topk_group."
    elif isinstance(options, SigmoidGroupOptions) and groups > 1 and experts // groups < 2:
        yield f"n_group = {groups} leaves one expert a group, and groups are ranked by their two best. Use at most {experts // 2}."


def router_weights(options: Any, site: RouterSite) -> list[Weight]:
    return [Weight("weight", (site.n_routed_experts, site.hidden_size), "router")]


def sigmoid_weights(options: SigmoidGroupOptions, site: RouterSite) -> list[Weight]:
    return [*router_weights(options, site), Weight("e_score_correction_bias", (site.n_routed_experts,), "state", init="zeros")]


def build(options: MoEOptions, site: Site) -> MixtureOfExperts:
    from .moe import MixtureOfExperts

    return MixtureOfExperts(options, site)


def build_sigmoid_group(options: SigmoidGroupOptions, site: RouterSite) -> SigmoidGroup:
    from .routers import SigmoidGroup

    return SigmoidGroup(options, site)


def build_softmax(options: SoftmaxOptions, site: RouterSite) -> Softmax:
    from .routers import Softmax

    return Softmax(options, site)


def build_softmax_group(options: SoftmaxGroupOptions, site: RouterSite) -> SoftmaxGroup:
    from .routers import SoftmaxGroup

    return SoftmaxGroup(options, site)


def dense_why_not(before: Any, after: MoEOptions, site: Site) -> str:
    """Why a dense layer cannot become these experts; see `surgery.upcycle`."""
    if before.intermediate_size != after.intermediate_size:
        return f"the dense layer is {before.intermediate_size} wide. Set intermediate_size of the experts to that."
    if not getattr(after.router.options, "norm_topk_prob", False):
        return "the router's weights do not add up to a constant, so that the function would change. Set router.norm_topk_prob to true."
    return ""


def from_dense(old: Mapping[str, Tensor], before: Any, after: MoEOptions, site: Site) -> dict[str, Made]:
    """Tensors of experts from those of a dense layer."""
    from .surgery import upcycle

    return upcycle(old, after)
