"""What the DeepSeek architectures share: MLA, dense layers first, layers of experts after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .common import MODEL, STORAGE
from .rope import Rope
from .rules import Config, Fixed, Inexpressible, Key, Only, Rule, Unsaid, Values, When


@dataclass(frozen=True)
class AllHeads:
    """MLA has a key and a value for every head; its config says so with `num_key_value_heads`."""

    def read(self, config: Config, values: Values) -> None:
        found, heads = config.data.get("num_key_value_heads"), config.data.get("num_attention_heads")
        if found not in (None, heads):
            config.refuse("num_key_value_heads", f"{found!r} differs from num_attention_heads = {heads!r}.", "MLA needs them equal.")

    def write(self, values: Values, config: dict[str, Any]) -> None:
        config["num_key_value_heads"] = config["num_attention_heads"]


@dataclass(frozen=True)
class DenseFirst:
    """`first_k_dense_replace` and `moe_layer_freq`: which layers have experts."""

    def read(self, config: Config, values: Values) -> None:
        if has_experts(config):
            if "first_k_dense_replace" not in config.data:
                return config.refuse(
                    "first_k_dense_replace", "this key is missing.", "Add it: the number of dense layers before the experts."
                )
            freq = config.integer("moe_layer_freq", 1)
            if freq == 0:
                return config.refuse("moe_layer_freq", "0 is no distance between layers.", "Set it to 1.")
            values |= {"layers.first_dense": config.integer("first_k_dense_replace", 0), "layers.moe_freq": freq}

    def write(self, values: Values, config: dict[str, Any]) -> None:
        added = values.get("mtp.depth", 0)
        config["first_k_dense_replace"] = values.pop("layers.first_dense", config["num_hidden_layers"] + added)
        config["moe_layer_freq"] = values.pop("layers.moe_freq", 1)


def has_experts(config: Config) -> bool:
    layers = config.integer("num_hidden_layers", 0)
    return config.data.get("n_routed_experts") is not None and config.integer("first_k_dense_replace", 0) < layers


def has_dense(config: Config) -> bool:
    frequent = config.integer("moe_layer_freq", 1) == 1
    return not has_experts(config) or config.integer("first_k_dense_replace", 0) > 0 or not frequent


@dataclass(frozen=True)
class SharedExperts:
    """`n_shared_experts`; transformers always builds a shared expert, so that zero cannot be written."""

    def read(self, config: Config, values: Values) -> None:
        Key("n_shared_experts", "moe.n_shared_experts", null=0).read(config, values)

    def write(self, values: Values, config: dict[str, Any]) -> None:
        count = values.pop("moe.n_shared_experts")
        if count == 0:
            raise Inexpressible("block.ffn.n_shared_experts = 0, where transformers always has a shared expert")
        config["n_shared_experts"] = count


MLA: tuple[Rule, ...] = (
    *MODEL,
    *STORAGE,
    AllHeads(),
    Rope(),
    Fixed("attention.use", "mla"),
    Fixed("attention.latent_norm_eps", 1e-6),
    Key("q_lora_rank", "attention.q_lora_rank"),
    Key("kv_lora_rank", "attention.kv_lora_rank"),
    Key("qk_nope_head_dim", "attention.qk_nope_head_dim"),
    Key("qk_rope_head_dim", "attention.qk_rope_head_dim"),
    Key("v_head_dim", "attention.v_head_dim"),
    Only("attention_bias", False, "MLA has no biases here."),
)

DENSE: tuple[Rule, ...] = (Fixed("dense.use", "dense"), Key("intermediate_size", "dense.intermediate_size"))

EXPERTS: tuple[Rule, ...] = (
    Fixed("moe.use", "moe"),
    Key("n_routed_experts", "moe.n_routed_experts"),
    Key("num_experts_per_tok", "moe.num_experts_per_tok"),
    Key("moe_intermediate_size", "moe.intermediate_size"),
    SharedExperts(),
    Key("aux_loss_alpha", "moe.aux_loss_alpha", absent=0.0, null=0.0),
    Key("seq_aux", "moe.seq_aux", absent=True, null=True),
    Unsaid(("router.bias_update_speed",)),
)


def blocks(*router: Rule) -> tuple[Rule, ...]:
    """Rules of a DeepSeek model with this router."""
    experts = When(has_experts, (*EXPERTS, *router), present="moe.use")
    return (*MLA, DenseFirst(), When(has_dense, DENSE, present="dense.use"), experts)
