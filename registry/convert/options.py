"""What a conversion is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...core.blocks import Block
from ...core.errors import BestiaryError, suggest

FORMATS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "fp8": "BF16"}
"""Format to safetensors' name of the dtype; of what is not quantised, for FP8."""


@dataclass(frozen=True)
class Options:
    """None keeps what is there."""

    to: str | None = None
    """`bf16`, `fp16`, `fp32`, or `fp8` in blocks."""
    block: Block | None = None
    power_of_two_scales: bool = False
    experts: Literal["per-expert", "packed"] | None = None
    names: Literal["hub", "deepseek"] = "hub"
    max_shard_size: int | str = "4GB"

    @property
    def plain(self) -> str:
        """safetensors' name of what unquantised numbers become."""
        return FORMATS[self.to or "bf16"]

    def check(self) -> None:
        """Refuses values that are none, and options that contradict each other.

        Raises:
            BestiaryError: says which.
        """
        for option, value, known in (("--to", self.to, FORMATS), ("--experts", self.experts, ("per-expert", "packed"))):
            if value is not None and value not in known:
                raise BestiaryError(f"{option} {value}: there is no such form. {suggest(value, list(known))}")
        if self.names not in ("hub", "deepseek"):
            raise BestiaryError(f"--names {self.names}: names are those of the hub or of deepseek's own code.")
        if (self.block or self.power_of_two_scales) and self.to != "fp8":
            raise BestiaryError("--block and --power-of-two-scales are about FP8. Add --to fp8.")
        if self.block and min(self.block) < 1:
            raise BestiaryError(f"--block {self.block[0]},{self.block[1]}: a block has at least one row and one column.")
        if self.names == "deepseek" and self.experts == "packed":
            raise BestiaryError("--names deepseek: that code knows one tensor per expert. Leave out --experts packed.")
