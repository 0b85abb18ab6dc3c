"""What the five slots promise one another.

Shape letters, here and everywhere:

    B batch    S sequence positions    D hidden size    H heads    V vocabulary
    E routed experts    K experts per token    T tokens (B * S)    N rows after dispatch (T * K)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .exchange import Wire
from .layers.swiglu import silu_product, swiglu

if TYPE_CHECKING:
    from .backbone import CausalLM
    from .blocks import Blocks
    from .cache import LayerCache
    from .manifest import Manifest
    from .site import Site
    from .weight_gradients import WeightGradients
    from .weights import After, Role

Shape = tuple[int, ...]


class Context:
    """What one forward pass shares among all layers: positions, documents, padding, caches.

    Layers of one pass see the same object, also when activation checkpointing runs a layer again; `once`
    therefore computes rotary tables and masks a single time, and counts tokens a single time.
    """

    def __init__(
        self,
        positions: Tensor,
        *,
        segments: Tensor | None = None,
        valid: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        aux_scale: float = 1.0,
        observed: dict[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            positions: `[B, S]` or `[1, S]` int64, place of each token in its sequence.
            segments: `[B, S]` int64, document of each token in a packed row; a token sees its own document only.
            valid: `[B, S]` bool, False for padding, which routing statistics leave out.
            caches: one per layer when decoding; new keys are appended to them.
            aux_scale: weight of this pass's auxiliary losses in the step, i.e. its share of the step's batch.
            observed: where an evaluation wants to hear what modules can tell about each sequence; None when nobody asks.
        """
        self.positions, self.segments, self.valid = positions, segments, valid
        self.caches, self.aux_scale, self.observed = caches, aux_scale, observed
        self.past = caches[0].length if caches else 0
        """Number of positions that the cache held before this pass."""
        self.parts: dict[str, Tensor] = {}
        """Auxiliary losses of this pass by name, detached; their gradients are injected where they arise."""
        self._memo: dict[Any, Any] = {}

    def cache(self, layer: int) -> LayerCache | None:
        return self.caches[layer] if self.caches is not None else None

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """`compute()` the first time that this pass asks for `key`, the remembered value afterwards."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def first(self, key: Any) -> bool:
        """True the first time only: guards a side effect against being repeated by recomputation."""
        known = key in self._memo
        self._memo[key] = True
        return not known

    def mask(self) -> Tensor | None:
        """`[B or 1, 1, S, past + S]` bool, True where a query may look; None when plain causal or a single query says it all."""
        return self.once("mask", self._mask)

    @property
    def is_causal(self) -> bool:
        """Whether `scaled_dot_product_attention` should apply its own causal mask."""
        return self.mask() is None and self.positions.shape[1] > 1

    def _mask(self) -> Tensor | None:
        length, past = self.positions.shape[1], self.past
        if self.segments is not None:
            if past:
                raise AssertionError("packed documents have no cache")
            same = self.segments[:, None, :, None] == self.segments[:, None, None, :]
            return same & torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        if past == 0 or length == 1:
            return None
        query = torch.arange(past, past + length, device=self.positions.device)
        return (query[:, None] >= torch.arange(past + length, device=query.device))[None, None]


class Attention(Protocol):
    """Mixes positions, causally. `forward` honours `context.mask()` and appends to `context.cache(layer)`.

    One whose heads ranks may share offers `share_matrices(ranks)`: from then on its matrices are cut as its `weights` say by `shard` and
    `unit`, and it puts `ranks.enter` and `ranks.leave` (`core.distributed.tensor_ranks`) around them. Others stay whole.
    """

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """`[B, S, D] -> [B, S, D]`"""
        ...

    def new_cache(self, batch: int, length: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        """An empty cache for `length` positions of this layer."""
        ...


class FeedForward(Protocol):
    """Transforms every position alone.

    One that talks to other ranks offers `share_experts(ranks)`, by which it keeps a part of itself, and `steps(x, context)`, its forward
    pass with stops (`core.exchange`), so that a schedule can compute something else meanwhile. One with statistics keeps them
    in buffers and offers `after_step`. One whose hidden layer ranks may share offers `share_matrices`, as an attention does; `SwiGLU` does.
    """

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """`[B, S, D] -> [B, S, D]`"""
        ...


Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks that share the batch; the identity in one process."""


class AfterStep(Protocol):
    """A module that acts once per optimizer step: bias updates, load metrics."""

    def after_step(self, reduce: Reduce) -> Mapping[str, float | Tensor]:
        """Returns metrics by name, whole distributions as tensors."""
        ...


class LinearLayer(nn.Module):
    """What `Site.linear` makes: `[..., d_in] -> [..., d_out]`."""

    weight: nn.Parameter
    """`[d_out, d_in]`, in the dtype in which it is stored."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix `[d_out, d_in]` in `dtype`, for code that multiplies with parts of it."""
        raise NotImplementedError

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The layer on `silu(gate) * up`, both `[..., d_in]`. One that can override this may compute and keep less."""
        return self(silu_product(gate, up))


GroupedProduct = Callable[[Tensor, Tensor, Tensor, "WeightGradients | None"], Tensor]
"""Rows sorted by expert `[N, d_in]`, matrices `[E, d_out, d_in]` in any dtype and counts `[E]` to `[N, d_out]` in the rows' dtype;
weight gradients go to a store if there is one."""


class GroupedLayer(nn.Module):
    """What `Site.grouped` makes: rows sorted by expert `[N, d_in]` and counts `[E]` to `[N, d_out]`."""

    weight: nn.Parameter
    """`[E, d_out, d_in]`, in the dtype in which it is stored."""

    wire = Wire()
    """How its rows may come from other ranks."""

    def gated(self, gate_up: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        """The layer on SwiGLU of rows `[N, 2 d_in]`, each times its routing weight `[N, 1]`; see `LinearLayer.gated`."""
        return self(swiglu(gate_up) * weights, counts)

    def row_multiple(self, rows: int) -> int:
        """What rows per expert should be a multiple of when `rows` rows are spread over all experts."""
        return 1

    def multiply_by(self, product: GroupedProduct) -> None:
        """Offers other code for plain products; a layer whose products are of another kind keeps its own."""


class HoldsBlocks(Protocol):
    """A layer that can compute from FP8 blocks as a checkpoint has them."""

    def hold(self, blocks: Blocks) -> None:
        """From now on its `weight` is e4m3 codes, and `weight_scale_inv` their factors; neither is trained."""
        ...


class Precision(Protocol):
    """Makes the matrices of a model and says how they are stored and computed with.

    One whose linear and grouped layers, once it is cast, are `HoldsBlocks` says `holds_blocks = True`: loading then keeps a
    checkpoint's FP8 blocks as they are. One whose matrices read something else than numbers offers
    `norm(size, *, eps, before: Role) -> RMSNorm`, for the norms before them.
    """

    compute_dtype: torch.dtype
    """Dtype of activations."""

    def linear(self, d_in: int, d_out: int, *, role: Role, bias: bool = False, after: After = "") -> LinearLayer:
        """A linear layer for this role; `after` says what makes its input, where that is known."""
        ...

    def grouped(self, experts: int, d_in: int, d_out: int, *, role: Role) -> GroupedLayer:
        """Stacked linear layers, one per expert."""
        ...

    def storage_dtype(self, role: Role) -> torch.dtype:
        """Dtype in which a parameter of this role is kept for training."""
        ...

    def cast(self, dtype: torch.dtype) -> Precision:
        """The same recipe storing and computing in `dtype`, for inference and for tests."""
        ...


@dataclass
class Batch:
    """One batch of token ids with its targets."""

    input_ids: Tensor
    """`[B, S]` int64."""
    targets: Tensor
    """`[B, S]` int64, the next token of each position, `IGNORE` where there is none."""
    segments: Tensor | None = None
    """`[B, S]` int64, document of each token, when attention must not cross documents."""
    valid: Tensor | None = None
    """`[B, S]` bool, False for padding."""

    def chunks(self, count: int) -> list[Batch]:
        """Splits the rows into `count` equal micro-batches."""
        rows = self.input_ids.shape[0]
        if rows % count:
            raise ValueError(f"{rows} rows do not split into {count} equal micro-batches")
        fields = [None if t is None else t.chunk(count) for t in (self.input_ids, self.targets, self.segments, self.valid)]
        return [Batch(*(None if f is None else f[i] for f in fields)) for i in range(count)]  # type: ignore[arg-type]

    def padded(self, multiple: int) -> Batch:
        """The batch with rows added that count for nothing, up to a multiple of so many."""
        missing = -self.input_ids.shape[0] % multiple
        if not missing:
            return self
        like = [None if t is None else t[:1].expand(missing, -1) for t in (self.input_ids, self.targets, self.segments, self.valid)]
        ids, targets, segments, valid = like
        rows = Batch(ids, torch.full_like(targets, IGNORE), segments, valid)  # type: ignore[arg-type]
        both = zip(vars(self).values(), vars(rows).values(), strict=True)
        return Batch(*(None if a is None else torch.cat((a, b)) for a, b in both))  # type: ignore[arg-type]


IGNORE = -100
"""Target of a position that has no next token, as in `torch.nn.functional.cross_entropy`."""


@dataclass
class Loss:
    """What a step minimised."""

    total: Tensor
    """The weighted sum of all objectives and auxiliary losses."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Each objective's loss before its weight, in nats per target; auxiliary losses as they enter the total."""
    metrics: dict[str, float] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)
    """What modules told in an evaluation, by name: `[B, ...]`, a row for each sequence. Empty in training."""

    def of_rows(self, rows: int) -> Loss:
        """The same without what was told of rows beyond the first `rows`, which were padding."""
        return replace(self, observed={name: tensor[:rows] for name, tensor in self.observed.items()})


def added(losses: Sequence[Loss]) -> Loss:
    """The loss of a step from those of its micro-batches, in their order."""
    parts = {name: torch.stack([loss.parts[name] for loss in losses]).sum() for name in losses[0].parts}
    observed = {name: torch.cat([loss.observed[name] for loss in losses]) for name in losses[0].observed}
    return Loss(torch.stack([loss.total for loss in losses]).sum(), parts, losses[-1].metrics, observed)


@dataclass
class Hidden:
    """What the backbone hands to the objectives."""

    raw: Tensor
    """`[B, S, D]` after the last block."""
    normed: Tensor
    """`[B, S, D]` after the final norm: what the head reads."""
    context: Context


class Objective(Protocol):
    """Something that training minimises.

    One that can guess tokens for speculative decoding also offers `drafter(model, batch, length, draft_tokens) -> Drafter`,
    for `batch` sequences of up to `length` tokens. One that gives the model methods names them in `Component.methods`. One that embeds
    tokens says `embeds = True`, so that a pipeline keeps the embedding where the last layer is.
    """

    def extend(self, model: CausalLM, site: Site) -> nn.Module | None:
        """Modules that this objective adds to the model, or None."""
        ...

    def count(self, batch: Batch) -> Tensor:
        """How many targets `batch` holds. A step sums this over its micro-batches and ranks."""
        ...

    def loss(self, model: CausalLM, batch: Batch, hidden: Hidden, count: Tensor) -> Loss:
        """Its weighted loss on one micro-batch: a sum over targets divided by the whole step's `count`."""
        ...


class Drafter(Protocol):
    """Guesses the tokens that follow in one batch, and remembers what it needs from one guess to the next."""

    def draft(self, hidden: Hidden, following: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """`[B, draft_tokens]`: guesses of the tokens after `following`.

        Args:
            hidden: the model's states at the S positions that have become certain since the last call; at first the prompt's.
            following: `[B, S]`, the token after each of them.
            choose: takes logits `[B, V]` to tokens `[B]`; it is called once for each guess, in order.
        """
        ...


@dataclass(frozen=True)
class Share:
    """What neighbouring ranks have of a model, each of them as much."""

    ranks: range
    stages: tuple[int, ...]
    layers: tuple[range, ...]
    """Of each stage."""
    parameters: int
    """On each of these ranks, before states are shared."""
    flops: float
    """Of a step, as a part of those of all stages."""


class Parallelism(Protocol):
    """Where a model lies and who runs what. Every rank calls its methods alike, with the whole step's batch."""

    processes: int
    """How many processes take a step together."""
    row_multiple: int
    """What the rows of a batch must be a multiple of."""

    def place(self, model: CausalLM) -> CausalLM:
        """Moves or shards an assembled model, whose parameters have no memory yet."""
        ...

    def step(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward and backward of one optimizer step; gradients are left in `.grad`, whole sums where a rank holds the parameter."""
        ...

    def evaluate(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward only, in evaluation mode; fills `Loss.observed`."""
        ...

    def describe(self, manifest: Manifest, rank: int) -> str:
        """What a rank holds, in words that finish "rank 3, which has ..."."""
        ...

    def shares(self, manifest: Manifest) -> Sequence[Share]:
        """Which ranks have which layers; nothing where all have the same."""
        ...

    def clip(self, model: CausalLM, limit: float) -> float:
        """Scales the gradients of all ranks so that their norm is at most `limit`; returns the norm before."""
        ...

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sums over the ranks that share a batch, as far as they hold the same layers."""
        ...

    def gather(self, found: dict[str, Any]) -> dict[str, Any]:
        """The union of what ranks with other layers have to report."""
        ...
