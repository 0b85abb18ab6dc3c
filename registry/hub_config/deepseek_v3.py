"""DeepSeek-V3 and the models of its architecture, such as Kimi K2 and Moonlight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .mla import blocks
from .rules import Config, Family, Fixed, Inexpressible, Key, Only, Unsaid, Values


@dataclass(frozen=True)
class MultiTokenPrediction:
    """`num_nextn_predict_layers`, also called `num_mtp_layers`: blocks stored as the layers that follow the last."""

    def read(self, config: Config, values: Values) -> None:
        found = {key: config.integer(key, 0) for key in ("num_nextn_predict_layers", "num_mtp_layers") if key in config.data}
        if len(set(found.values())) > 1:
            config.refuse("num_mtp_layers", f"the config contradicts itself: {found}.", "Remove one of these keys.")
        if depth := max(found.values(), default=0):
            values |= {"mtp.use": "mtp", "mtp.depth": depth}

    def write(self, values: Values, config: dict[str, Any]) -> None:
        values.pop("mtp.use", None)
        config["num_nextn_predict_layers"] = values.pop("mtp.depth", 0)
        if values.pop("mtp.hidden", "post-norm") != "post-norm":
            raise Inexpressible("objective.mtp.hidden = 'pre-norm', where readers of this architecture use the normed state")


ROUTER = (
    Fixed("router.use", "sigmoid-group"),
    Only("scoring_func", "sigmoid", "Softmax scores belong to model_type deepseek_v2."),
    Only("topk_method", "noaux_tc", "The greedy methods belong to model_type deepseek_v2."),
    Key("n_group", "router.n_group", absent=8, null=1),
    Key("topk_group", "router.topk_group", absent=4, null=1),
    Key("norm_topk_prob", "router.norm_topk_prob", absent=True),
    Key("routed_scaling_factor", "router.routed_scaling_factor", absent=2.5),
)

FAMILY = Family(
    ("deepseek_v3", "kimi_k2"),
    "DeepseekV3ForCausalLM",
    (
        *blocks(*ROUTER),
        MultiTokenPrediction(),
        Unsaid(("mtp.weight",)),
        Key("rope_interleave", "attention.rope_interleave", absent=True, null=True),
    ),
)
