"""What a plugin hands over: a `Component`, and the `Options` that a manifest may set for it.

A component is a record of plain functions of its options and its `Site`. `weights` and `cost` answer
from options alone, so that a 671B model is counted in milliseconds; assembly checks that `build` made
exactly the parameters that `weights` declares.

A complete plugin, one file:

    \"\"\"Hash routing: the token's position in a fixed random table picks its experts.\"\"\"
    from bestiary.core.component import Component, Options
    from bestiary.core.hookspecs import hookimpl

    BESTIARY_API = 1

    class HashOptions(Options):
        seed: int = 0
        \"\"\"Changes which experts share a token.\"\"\"

    @hookimpl
    def bestiary_router():
        return Component("hash", HashOptions, HashRouter)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import CoreSchema, core_schema

from .site import Site
from .surgery import Conversion
from .weights import Weight

if TYPE_CHECKING:
    from .manifest import Manifest
    from .plugins import Origin

T = TypeVar("T")


class Options(BaseModel):
    """Base of every options record: unknown keys are errors, values are frozen, field docstrings are the help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    def table(self) -> dict[str, Any]:
        """The options as manifest data, every default filled in, sub-slots as their own tables."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, (Options, Part)):
        return value.table()
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class SubSlot:
    """Marks an option that holds another component: `router: Annotated[Part, SubSlot("router")]`."""

    slot: str


@dataclass(frozen=True)
class Cost:
    """Arithmetic that follows from options but not from the list of weights, per token."""

    pair_macs: int = 0
    """Multiply-adds for each (query, key) pair that attends: heads x (query width + value width)."""
    cache_elements: int = 0
    """Numbers kept in the decoding cache."""
    saved_elements: int = 0
    """Numbers that training keeps for the backward pass, apart from the block's own two norms."""
    saved_fp32: int = 0
    """The same, of numbers that are kept in fp32 whatever the precision."""
    cut_elements: int = 0
    """Of `saved_elements`, those that tensor-parallel ranks share: of heads, and of hidden layers."""
    dealt_elements: int = 0
    """Of `saved_elements`, those of routed experts, of which tensor-parallel ranks keep a part each where ranks share the experts."""
    reused_parameters: int = 0
    """Parameters of other parts that are used once more, such as the head by MTP."""


@dataclass(frozen=True)
class Storage:
    """Bytes per number under a precision component."""

    master: float = 4
    """A parameter while training."""
    gradient: float = 4
    moments: float = 8
    """Both moments of AdamW."""
    activation: float = 2
    copy: float = 0
    """The copy of a matrix that is computed with, kept from forward to backward pass."""
    inference: float = 2
    """A matrix of the blocks when only used."""
    inference_high: float = 2
    """Everything else when only used: embedding, head, gate, norms."""
    tile: int | None = 1
    """Neighbouring rows and columns of a matrix that share a factor, so that a cut may not part them; None for all of them."""
    dispatch: float | None = None
    """A number of a row on its way to an expert on another rank; as many as `activation` when None, as on its way home."""
    dispatch_gradient: float | None = None
    """The same of the gradient of an expert's result."""


def _no_weights(options: Any, site: Site) -> Sequence[Weight]:
    return ()


def _no_cost(options: Any, site: Site) -> Cost:
    return Cost()


def _no_check(options: Any, where: Any) -> Iterable[str]:
    return ()


def _native_storage(options: Any) -> Storage:
    return Storage()


def _nothing_to_say(options: Any) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Component(Generic[T]):
    """One choice for one slot."""

    name: str
    """What a manifest's `use` says."""
    options: type[Options]
    build: Callable[[Any, Any], T]
    """Makes the module. It is called under `torch.device("meta")`; nothing may be computed from parameters here."""
    weights: Callable[[Any, Any], Sequence[Weight]] = _no_weights
    """Every parameter and persistent buffer that `build` makes, with its Hub layout and how it may be sharded."""
    cost: Callable[[Any, Any], Cost] = _no_cost
    check: Callable[[Any, Any], Iterable[str]] = _no_check
    """What is wrong with these options at this site, as sentences; runs before anything is built."""
    misfits: Callable[[Any, Manifest], Iterable[str]] = _no_check
    """Parallelism components only: what keeps a model from being spread as the options say, as sentences; runs after every `check`."""
    storage: Callable[[Any], Storage] = _native_storage
    """Precision components only: how many bytes a number takes."""
    describe: Callable[[Any], Mapping[str, str]] = _nothing_to_say
    """What these options come to on the machine at hand, such as which kernels compute and why, for people; never raises."""
    adjustable: tuple[str, ...] = ()
    """Numeric options that may change while training; what is built offers `adjust(option, value)`. A sub-slot's are its own."""
    methods: tuple[str, ...] = ()
    """Objectives only: methods of what is built that the model gains; the model is their first argument."""
    same_as: str | None = None
    """Claims to compute the same function with the same weights as another component of its slot."""
    conversions: tuple[Conversion, ...] = ()
    """Ways of making its weights from those of other components of its slot, or of itself with other options."""
    summary: str = ""
    origin: Origin | None = field(default=None, compare=False)
    """Which plugin offers it; filled in by the plugin manager."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """A component together with checked options: one filled slot of a resolved manifest."""

    component: Component[T]
    options: Options

    @property
    def use(self) -> str:
        return self.component.name

    def build(self, site: Site) -> T:
        return self.component.build(self.options, site)

    def weights(self, site: Site) -> Sequence[Weight]:
        return self.component.weights(self.options, site)

    def cost(self, site: Site) -> Cost:
        return self.component.cost(self.options, site)

    def storage(self) -> Storage:
        return self.component.storage(self.options)

    def describe(self) -> Mapping[str, str]:
        return self.component.describe(self.options)

    def here(self) -> str:
        """`describe` in a line."""
        return ", ".join(f"{key} {said}" for key, said in self.describe().items())

    def check(self, site: Site) -> list[str]:
        return list(self.component.check(self.options, site))

    def misfits(self, manifest: Manifest) -> list[str]:
        return list(self.component.misfits(self.options, manifest))

    def table(self) -> dict[str, Any]:
        return {"use": self.use, **self.options.table()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """Options hold parts as they are: the resolver has checked them."""
        return core_schema.is_instance_schema(cls)
