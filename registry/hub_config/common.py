"""Rules that every supported architecture shares: shape, rotary embedding, and how weights are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from .rules import Config, Inexpressible, Key, Only, Rule, Values

MODEL: tuple[Rule, ...] = (
    Key("hidden_size", "model.hidden_size"),
    Key("num_hidden_layers", "model.num_hidden_layers"),
    Key("num_attention_heads", "model.num_attention_heads"),
    Key("vocab_size", "model.vocab_size"),
    Key("max_position_embeddings", "model.max_position_embeddings"),
    Key("rms_norm_eps", "model.rms_norm_eps", absent=1e-6),
    Key("tie_word_embeddings", "model.tie_word_embeddings", absent=False, null=False),
    Key("initializer_range", "model.initializer_range", absent=0.02, null=0.02),
    Key("bos_token_id", "model.bos_token_id", absent=None),
    Key("eos_token_id", "model.eos_token_id", absent=None),
    Only("hidden_act", "silu", "Only SwiGLU models are supported."),
    Only("attention_dropout", 0.0, "Dropout is not supported; it acts only in training, so set it to 0 to use the weights without it."),
)

PRECISIONS = {"bfloat16": "bf16", "float16": "bf16", "float32": "fp32"}
"""Stored dtype to the precision under which such a model is trained here. fp16 has no component of its own: `load` keeps
the parameters in fp16 unless told otherwise, and training goes on in bf16."""


@dataclass(frozen=True)
class StoredDtype:
    """`dtype`, which transformers before 5 calls `torch_dtype`."""

    def read(self, config: Config, values: Values) -> None:
        name = config.data.get("dtype", config.data.get("torch_dtype"))
        if name is None:
            return
        if not isinstance(name, str) or name not in PRECISIONS:
            config.refuse("dtype", f"{name!r} is not supported.", f"Known: {', '.join(sorted(PRECISIONS))}.")
            return
        values |= {"hub.dtype": name, "precision.use": PRECISIONS[name]}

    def write(self, values: Values, config: dict[str, Any]) -> None:
        for path in [path for path in values if path.startswith("precision.")]:
            values.pop(path)
        config["torch_dtype"] = values.pop("hub.dtype")


@dataclass(frozen=True)
class Fp8Blocks:
    """`quantization_config` of DeepSeek's FP8 checkpoints: e4m3 weights, one fp32 multiplier per block."""

    def read(self, config: Config, values: Values) -> None:
        found = config.data.get("quantization_config")
        if found is None:
            return
        method = found.get("quant_method") if isinstance(found, dict) else found
        size = found.get("weight_block_size") if isinstance(found, dict) else None
        if method != "fp8" or not _is_block(size):
            wrong = f"quant_method {method!r} with weight_block_size {size!r} is not supported."
            config.refuse("quantization_config", wrong, "Known: 'fp8' with a weight_block_size [rows, columns]; use unquantised weights.")
            return
        for key, known in (("fmt", "e4m3"), ("activation_scheme", "dynamic")):
            if found.get(key, known) != known:
                config.refuse(f"quantization_config.{key}", f"found {found[key]!r}, supported is {known!r}.", "Use unquantised weights.")
        values["hub.weight_block_size"] = list(size)

    def write(self, values: Values, config: dict[str, Any]) -> None:
        size = values.pop("hub.weight_block_size", None)
        if size is not None:
            config["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": list(size),
            }


@dataclass(frozen=True)
class DividesHidden:
    """transformers refuses configs of some architectures whose heads do not divide the hidden size."""

    def read(self, config: Config, values: Values) -> None:
        return

    def write(self, values: Values, config: dict[str, Any]) -> None:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        if hidden % heads:
            raise Inexpressible(f"hidden_size = {hidden} is no multiple of num_attention_heads = {heads}, which transformers refuses")


def _is_block(size: Any) -> TypeGuard[list[int]]:
    return isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)


STORAGE: tuple[Rule, ...] = (StoredDtype(), Fp8Blocks())
