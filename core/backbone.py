"""The model around the slots: embedding, pre-norm blocks, final norm, head.

    x = embed(ids);  x += attention(norm(x));  x += ffn(norm(x));  ...;  logits = head(norm(x))

One forward serves training, prefill and decoding; what differs is in the `Context`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import Cache
from .contracts import Attention, Batch, Context, FeedForward, Hidden, Loss, Objective, Parallelism, Precision, Reduce
from .errors import BestiaryError
from .exchange import Steps
from .layers.cross_entropy import summed_cross_entropy
from .layers.norm import RMSNorm

if TYPE_CHECKING:
    from .blocks import Blocks
    from .component import Part
    from .distributed.cuts import Cut
    from .manifest import Manifest
    from .site import Site
    from .speculate import Acceptance


class Block(nn.Module):
    """One pre-norm transformer block: `[B, S, D] -> [B, S, D]`."""

    def __init__(self, attention: Part[Attention], ffn: Part[FeedForward], site: Site) -> None:
        super().__init__()
        self.input_layernorm = site.norm(site.hidden_size, before="linear")
        self.self_attn = cast(nn.Module, attention.build(site))
        self.post_attention_layernorm = site.norm(site.hidden_size, before="linear")
        self.mlp = cast(nn.Module, ffn.build(site))

    recompute = False
    """Whether the backward pass starts from the block's input and computes the rest again; see `core.recompute`."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self.mlp(self.post_attention_layernorm(x), context)

    def steps(self, x: Tensor, context: Context) -> Steps:
        """`forward`, which stops where the ffn talks to other ranks."""
        x = x + self.self_attn(self.input_layernorm(x), context)
        inner = self.post_attention_layernorm(x)
        if getattr(self.mlp, "ranks", None) is None:
            return x + self.mlp(inner, context)
        steps = cast(Any, self.mlp).steps(inner, context)
        try:
            stop = next(steps)
            while True:
                received, (*kept, x) = yield stop.keeping(x)
                stop = steps.send((received, tuple(kept)))
        except StopIteration as end:
            return x + end.value


class Elsewhere(nn.Module):
    """Stands for a layer that lies on another rank."""

    def forward(self, *arguments: Any) -> Any:
        raise BestiaryError("This rank holds a part of the model only; `step` and `evaluate` of its parallelism run all parts.")


class Backbone(nn.Module):
    """Embedding, blocks and final norm: `[B, S]` ids to `Hidden`."""

    def __init__(self, manifest: Manifest, precision: Precision) -> None:
        super().__init__()
        site = replace(manifest.site, precision=precision)
        self.compute_dtype = precision.compute_dtype
        self.embed_tokens = nn.Embedding(site.vocab_size, site.hidden_size)
        self.layers = nn.ModuleList(Block(layer.attention, layer.ffn, site.at(i)) for i, layer in enumerate(manifest.layers))
        self.norm = RMSNorm(site.hidden_size, eps=site.rms_norm_eps)

    def embed(self, input_ids: Tensor) -> Tensor:
        """`[B, S] -> [B, S, D]` in the compute dtype."""
        return self.embed_tokens(input_ids).to(self.compute_dtype)

    def forward(self, input_ids: Tensor, context: Context) -> Hidden:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, context)
        return Hidden(raw=x, normed=self.norm(x), context=context)


class CausalLM(nn.Module):
    """A language model assembled from a manifest. `forward` takes `input_ids` first and returns logits."""

    def __init__(self, manifest: Manifest, precision: Precision) -> None:
        super().__init__()
        self.manifest = manifest
        self.precision = precision
        self.load_report: Any = None
        """What `bestiary.load` took from where; None for a model with fresh weights."""
        self.model = Backbone(manifest, precision)
        size = manifest.model.hidden_size, manifest.model.vocab_size
        self.lm_head = None if manifest.model.tie_word_embeddings else precision.linear(*size, role="head")
        self.objectives = nn.ModuleDict()
        self.goals: dict[str, Objective] = {}
        self.parallelism: Parallelism
        """What placed this model, and takes its steps."""
        self.cuts: dict[str, Cut] = {}
        """Parameters of which this rank holds a part, by name."""
        self.blocks: dict[str, Blocks] = {}
        """Parameters that are kept in FP8 blocks, by name; their factors are the parameters with `_scale_inv` behind it."""

    def forward(
        self, input_ids: Tensor, *, cache: Cache | None = None, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Logits for every position.

        Args:
            input_ids: `[B, S]` int64.
            cache: from `new_cache`; the ids continue what it holds and are added to it.
            positions: `[B, S]`, by default counted on from the cache.
            segments: `[B, S]`, the document of each token when rows are packed.

        Returns:
            `[B, S, V]` in the compute dtype.
        """
        return self.logits(self.hidden(input_ids, cache=cache, positions=positions, segments=segments).normed)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        valid: Tensor | None = None,
        aux_scale: float = 1.0,
        observed: dict[str, Tensor] | None = None,
    ) -> Hidden:
        """The backbone's output, from which heads and objectives start."""
        past = cache.length if cache else 0
        if positions is None:
            positions = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
        caches = cache.layers if cache else None
        context = Context(positions, segments=segments, valid=valid, caches=caches, aux_scale=aux_scale, observed=observed)
        return self.model(input_ids, context)

    def logits(self, normed: Tensor) -> Tensor:
        """`[..., D] -> [..., V]`"""
        if self.lm_head is None:
            return F.linear(normed, self.model.embed_tokens.weight.to(normed.dtype))
        return self.lm_head(normed)

    def token_loss(self, normed: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy in nats of `[B, S, D]` against `[B, S]`, ignored targets left out; at least fp32."""
        return summed_cross_entropy(self.logits(normed).flatten(0, -2), targets.flatten())

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty decoding cache for `batch` sequences of up to `length` positions."""
        like = self.model.embed_tokens.weight
        kinds = {"device": like.device, "dtype": self.model.compute_dtype}
        return Cache([layer.self_attn.new_cache(batch, length, **kinds) for layer in self._blocks()])

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        speculative: str | None = None,
        draft_tokens: int = 1,
        acceptance: Acceptance | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Continues `[B, S]` prompts of equal length.

        Args:
            input_ids: the prompts.
            max_new_tokens: tokens to add at most.
            speculative: key or name of the objective that drafts tokens, such as `"mtp"`; None decodes token by token.
            draft_tokens: how many it drafts for each pass of the model.
            acceptance: counts what became of the drafts.
            **sampling: see `bestiary.core.sampling.Sampling`.

        Returns:
            `[B, S + N]`, prompts included; rows that ended early repeat their end token.
        """
        from .generate import generate
        from .sampling import Sampling
        from .speculate import Speculation

        speculation = Speculation(speculative, draft_tokens, acceptance) if speculative else None
        return generate(self, input_ids, max_new_tokens=max_new_tokens, sampling=Sampling(**sampling), speculation=speculation)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many targets each objective finds in `batch`."""
        return {key: goal.count(batch) for key, goal in self.goals.items()}

    def loss(self, batch: Batch, counts: Mapping[str, Tensor], *, share: float = 1.0, observe: bool = False) -> Loss:
        """One micro-batch's part of the step's loss: every objective in the manifest's order, then auxiliary losses.

        Args:
            batch: the micro-batch.
            counts: `counts` of the whole step, by which sums are divided.
            share: the micro-batch's share of the step, the weight of its auxiliary losses.
            observe: whether modules are asked what they can tell about each sequence, for `Loss.observed`.
        """
        observed: dict[str, Tensor] = {}
        asked = observed if observe else None
        hidden = self.hidden(batch.input_ids, segments=batch.segments, valid=batch.valid, aux_scale=share, observed=asked)
        loss = self.objective_loss(batch, hidden, counts)
        auxiliary = {name: part * share for name, part in hidden.context.parts.items()}
        return Loss(loss.total + sum(auxiliary.values()), loss.parts | auxiliary, loss.metrics, observed)

    def objective_loss(self, batch: Batch, hidden: Hidden, counts: Mapping[str, Tensor]) -> Loss:
        """The objectives' part of `loss`, from the backbone's output."""
        loss = Loss(torch.zeros((), device=batch.input_ids.device))
        for key, goal in self.goals.items():
            one = goal.loss(self, batch, hidden, counts[key])
            loss.total = loss.total + one.total
            loss.parts |= one.parts
            loss.metrics |= one.metrics
        return loss

    def after_step(self, reduce: Reduce) -> Mapping[str, float | Tensor]:
        """Lets every module act once after an optimizer step (bias updates) and collects their metrics."""
        metrics: dict[str, float | Tensor] = {}
        for name, module in self.named_modules():
            act = getattr(module, "after_step", None)
            if act is not None and module is not self:
                metrics |= {f"{name}.{key}": value for key, value in act(reduce).items()}
        return metrics

    def __getattr__(self, name: str) -> Any:
        """Methods that its objectives give a model, beside its parameters and modules."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            for key, goal in vars(self).get("goals", {}).items():
                if name in self.manifest.objectives[key].component.methods:
                    return partial(getattr(goal, name), self)
            raise AttributeError(f"{error}{_who_gives(name)}") from None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def _blocks(self) -> Iterator[Any]:
        yield from self.model.layers


def _who_gives(method: str) -> str:
    """The end of an error about a method that some objective would give a model."""
    from .plugins import plugins

    givers = [component.name for component in plugins().slots["objective"].values() if method in component.methods]
    return "".join(f". The objective '{name}' gives it: train or load a model with objective.{name}.use = \"{name}\"" for name in givers)
