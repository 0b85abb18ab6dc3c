"""What a study file says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...core.component import Options

Same = Literal["tokens", "flops", "parameters", "active_parameters", "nothing"]
BUDGET = ("train.steps", "train.tokens")
"""What `by` says to match the length of the run instead of a size of the model."""


class MatchOptions(Options):
    """What all variants have equally much of, and what is turned to get there."""

    same: Same = "tokens"
    """`tokens`: trained on. `flops`: spent on training, in all. `parameters`, `active_parameters`: of the main model. Except for
    `flops` by the budget, and `nothing`, variants train on equally many tokens."""
    by: str = ""
    """Option of the manifest that is solved for, a whole number such as `block.ffn.intermediate_size`; or for `flops`, and by
    default there, `train.steps`: the length of the run."""
    multiple_of: int = Field(default=1, gt=0)
    """The solved option is a multiple of this."""
    tolerance: float = Field(default=0.01, gt=0, lt=1)
    """How far the best value may be from the baseline's figure, as a part of it."""

    @property
    def of_model(self) -> bool:
        """Whether an option of the manifest is solved for."""
        return bool(self.by) and self.by not in BUDGET

    @property
    def of_budget(self) -> bool:
        """Whether the length of the run is solved for."""
        return self.same == "flops" and not self.of_model


class FullScaleOptions(Options):
    """The model and the run for which a report estimates what each variant would cost."""

    model: str
    """Manifest to which each variant's changes are applied: a catalog name, a path, or a Hub id."""
    tokens: Annotated[str, BeforeValidator(str)]
    """To train on, such as `14.8T`."""
    gpu: str = "h800"
    """An accelerator that `bestiary cost` knows."""
    price: float | None = Field(default=None, gt=0)
    """Of a GPU hour, in dollars."""
    mfu: float | None = Field(default=None, gt=0)
    """Utilisation, as `bestiary cost --mfu` counts it; its default when left out."""


class StudyOptions(Options):
    """A whole study."""

    title: str = ""
    """Heading of the report; the file's name when empty."""
    description: str = ""
    """What the study asks, a sentence or two for the report."""
    recipe: str | dict[str, Any]
    """Path of the recipe that all variants share, or the recipe itself as a table."""
    baseline: str = "baseline"
    """The variant that the others are compared with; `baseline`, where no variant is called so, is the recipe as it is."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Changes of the recipe and of its model, by name; `match` in one changes the rule for it."""
    grid: dict[str, Any] = Field(default_factory=dict)
    """Lists of alternatives by setting: one variant for every combination, each on top of the baseline."""
    one_at_a_time: dict[str, Any] = Field(default_factory=dict, alias="one-at-a-time")
    """Lists of alternatives by setting: one variant for every alternative alone, on top of the baseline."""
    seeds: tuple[int, ...] | None = None
    """Of initial weights and data order, the same for every variant; those of the recipe when left out."""
    match: MatchOptions = MatchOptions()
    """What the variants have equally much of."""
    full_scale: FullScaleOptions | None = None
    """What costs are estimated for, besides the variants as they are."""
    out: str = ""
    """Folder for runs and report; `runs/<study's file name>` in the working directory when empty."""
