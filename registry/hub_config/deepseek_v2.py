"""DeepSeek-V2: softmax scores, and two ways of choosing experts by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .common import DividesHidden
from .mla import blocks
from .rules import Config, Family, Fixed, Inexpressible, Key, Only, Values

METHODS = {"greedy": "softmax-topk", "group_limited_greedy": "softmax-group"}


@dataclass(frozen=True)
class Method:
    """`topk_method`, with groups where the method has them."""

    def read(self, config: Config, values: Values) -> None:
        method = config.data.get("topk_method", "greedy")
        if method not in METHODS:
            remedy = f"Known here: {', '.join(METHODS)}; noaux_tc belongs to model_type deepseek_v3."
            return config.refuse("topk_method", f"{method!r} is not supported.", remedy)
        values["router.use"] = METHODS[method]
        if method != "greedy":
            for key in ("n_group", "topk_group"):
                Key(key, f"router.{key}").read(config, values)

    def write(self, values: Values, config: dict[str, Any]) -> None:
        use = values.pop("router.use")
        known = {ours: method for method, ours in METHODS.items()}
        if use not in known:
            raise Inexpressible(f"block.ffn.router.use = '{use}', where this architecture has {' or '.join(known)}")
        config["topk_method"] = known[use]
        for key in ("n_group", "topk_group"):
            config[key] = values.pop(f"router.{key}", 1)


@dataclass(frozen=True)
class Weighting:
    """`norm_topk_prob` and `routed_scaling_factor`, of which DeepSeek-V2's own code applies one and transformers the second only."""

    def read(self, config: Config, values: Values) -> None:
        normed, scale = bool(config.data.get("norm_topk_prob")), config.data.get("routed_scaling_factor", 1.0)
        if normed and scale != 1:
            fact = f"true together with routed_scaling_factor = {scale!r}: DeepSeek's code normalises, transformers scales."
            return config.refuse("norm_topk_prob", fact, "Set one of them back, depending on what made the weights.")
        values |= {"router.norm_topk_prob": normed, "router.routed_scaling_factor": scale}

    def write(self, values: Values, config: dict[str, Any]) -> None:
        if values.pop("router.norm_topk_prob"):
            raise Inexpressible("block.ffn.router.norm_topk_prob = true, which transformers' deepseek_v2 ignores")
        config["norm_topk_prob"] = False
        config["routed_scaling_factor"] = values.pop("router.routed_scaling_factor")


FAMILY = Family(
    ("deepseek_v2",),
    "DeepseekV2ForCausalLM",
    (
        *blocks(Only("scoring_func", "softmax", "Sigmoid scores belong to model_type deepseek_v3."), Method(), Weighting()),
        DividesHidden(),
        Fixed("attention.rope_interleave", True),
        Only("mlp_bias", False, "SwiGLU has no biases here."),
    ),
)
