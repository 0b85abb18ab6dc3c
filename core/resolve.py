"""From manifest data to a `Manifest`: merge, choose components, check, and say everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .component import Options, Part, SubSlot
from .errors import BestiaryError, Problem, suggest
from .manifest import MOST_LAYERS, SCHEMA, HubOptions, Layer, Manifest, ModelOptions, Setting
from .plugins import Plugins
from .plugins import plugins as installed_plugins
from .slices import SLOTS, layer_tables
from .tree import Leaf, Tree, join, leaves, merge, plain

SECTIONS = ("schema", "extends", "name", "description", "model", "block", "precision", "parallelism", "objective", "hub")
DEFAULTS: dict[str, Any] = {
    "precision": {"use": "bf16"},
    "parallelism": {"use": "local"},
    "objective": {"next-token": {"use": "next-token"}},
}


def resolve(chain: Sequence[Tree], *, name: str, plugins: Plugins | None = None) -> Manifest:
    """The manifest that `chain` describes: the root of `extends` first, `--set` last.

    Raises:
        BestiaryError: with every problem found, each naming file, dotted path, value, and remedy.
    """
    tree: Tree = {}
    for link in chain:
        tree = merge(tree, link)
    return _Resolver(tree, plugins or installed_plugins()).manifest(name)


class _Resolver:
    """Walks one merged tree and collects problems instead of stopping at the first."""

    def __init__(self, tree: Tree, plugins: Plugins) -> None:
        self.tree, self.plugins = tree, plugins
        self.problems: list[Problem] = []
        self.settings: list[Setting] = []

    def manifest(self, name: str) -> Manifest:
        self._check_sections()
        model = self._options(ModelOptions, self._table("model"), "model", of="[model]")
        layers = self._layers(model)
        precision = self._default_part("precision")
        parallelism = self._default_part("parallelism")
        objectives = self._objectives()
        hub = self._options(HubOptions, self._table("hub"), "hub", of="[hub]")
        self._stop()
        manifest = Manifest(
            name=name,
            model=model,
            layers=tuple(layers),
            precision=precision,
            parallelism=parallelism,
            objectives=objectives,
            hub=hub,
            description=" ".join(str(self._scalar("description") or "").split()),
            settings=tuple(self.settings),
        )
        self._check_parts(manifest)
        return manifest

    def _stop(self) -> None:
        if self.problems:
            raise BestiaryError(*dict.fromkeys(self.problems))

    def _problem(self, node: Leaf | None, path: str, fact: str, remedy: str = "") -> None:
        where = f"{node.source}: {node.path}" if node and not node.source.startswith("--set") else (node.source if node else path)
        self.problems.append(Problem(fact, where, remedy))

    def _scalar(self, key: str) -> Any:
        node = self.tree.get(key)
        return node.value if isinstance(node, Leaf) else None

    def _table(self, key: str) -> Tree:
        node = self.tree.get(key, {})
        if isinstance(node, Leaf):
            self._problem(node, key, f"expected a table, found {node.value!r}.", f"Write [{key}].")
            return {}
        return node

    def _check_sections(self) -> None:
        for key, node in self.tree.items():
            if key not in SECTIONS:
                first = node if isinstance(node, Leaf) else next(leaves(node), None)
                self._problem(first, key, f"there is no section called '{key}'.", suggest(key, SECTIONS))
        schema = self.tree.get("schema")
        if not isinstance(schema, Leaf):
            self.problems.append(Problem("the manifest does not say its schema.", "schema", f"Write schema = {SCHEMA} at its top."))
        elif type(schema.value) is not int or schema.value != SCHEMA:
            self._problem(schema, "schema", f"schema {schema.value!r} is unknown.", f"This bestiary reads schema = {SCHEMA}.")

    def _options(self, kind: type[Options], tree: Tree, path: str, *, of: str) -> Any:
        """Checked options of `kind` from `tree`, or None after noting what is wrong."""
        values: dict[str, Any] = {}
        failed: set[str] = set()
        for key, node in tree.items():
            if key == "use":
                continue
            slot = _sub_slot(kind, key)
            if slot is None:
                values[key] = node.value if isinstance(node, Leaf) else plain(node)
            elif isinstance(node, Leaf):
                self._problem(
                    node, path, f"'{key}' is a {slot} component: expected a table, found {node.value!r}.", f"Write {key}.use = ..."
                )
                failed.add(key)
            elif (part := self._part(slot, node, join(path, key))) is None:
                failed.add(key)
            else:
                values[key] = part
        try:
            options = kind.model_validate(values)
        except ValidationError as error:
            for detail in error.errors():
                if detail["loc"][0] not in failed:
                    self._validation(kind, detail, tree, path, of)
            return None
        self._record(options, tree, path)
        return options

    def _validation(self, kind: type[Options], detail: ErrorDetails, tree: Tree, path: str, of: str) -> None:
        steps = [str(step) for step in detail["loc"]]
        location, node = _locate(tree, steps)
        leaf = node if isinstance(node, Leaf) else next(leaves(node), None)
        option, dotted = ".".join(location), ".".join([path, *location])
        match detail["type"]:
            case "extra_forbidden":
                self._problem(leaf, dotted, f"{of} has no option '{option}'.", suggest(location[-1], _fields(kind, steps)))
            case "missing":
                slot = _sub_slot(kind, option)
                known = f".use; known: {', '.join(sorted(self.plugins.slots.get(slot, {})))}" if slot else ""
                fact, where = f"{of} needs '{option}', which is not set.", ".".join([path, *location[:-1]])
                self.problems.append(Problem(fact, f"{leaf.source}: {where}" if leaf else where, f"Set {dotted}{known}."))
            case _:
                value = f" (found {node.value!r})" if isinstance(node, Leaf) else ""
                self._problem(leaf, dotted, f"{of}, option '{option}': {_sentence(detail['msg'])}{value}.")

    def _record(self, options: Options, tree: Tree, path: str) -> None:
        for name in type(options).model_fields:
            value, node = getattr(options, name), tree.get(name)
            if isinstance(value, Part):
                continue
            if isinstance(value, Options) and not isinstance(node, Leaf):
                self._record(value, node or {}, join(path, name))
                continue
            leaf = node if isinstance(node, Leaf) else next(leaves(node), None) if node else None
            source = "default" if leaf is None else leaf.source
            self.settings.append(Setting(join(path, name), _shown(value), source))

    def _part(self, slot: str, tree: Tree, path: str) -> Part | None:
        """The component that `tree` names for `slot`, with its options checked."""
        use = tree.get("use")
        if not isinstance(use, Leaf):
            leaf = next(leaves(tree), None)
            known = ", ".join(sorted(self.plugins.slots.get(slot, {})))
            where = f"{leaf.source}: {path}" if leaf else path
            self.problems.append(Problem(f"no {slot} component is named.", where, f"Set {path}.use; known: {known}."))
            return None
        try:
            component = self.plugins.find(slot, str(use.value))
        except BestiaryError as error:
            self._problem(use, path, str(error))
            return None
        self.settings.append(Setting(join(path, "use"), use.value, use.source))
        options = self._options(component.options, tree, path, of=f"{slot} '{component.name}'")
        return None if options is None else Part(component, options)

    def _default_part(self, slot: str) -> Any:
        tree = self._table(slot)
        if "use" not in tree:
            tree = merge({"use": Leaf(DEFAULTS[slot]["use"], "default", f"{slot}.use")}, tree)
        return self._part(slot, tree, slot)

    def _objectives(self) -> dict[str, Any]:
        table = self._table("objective")
        if not table:
            table = {"next-token": {"use": Leaf("next-token", "default", "objective.next-token.use")}}
        chosen: dict[str, Any] = {}
        for key, node in table.items():
            if isinstance(node, Leaf) and node.value is False:
                continue
            if isinstance(node, Leaf):
                self._problem(node, f"objective.{key}", f"expected a table, or false to leave it out; found {node.value!r}.")
                continue
            chosen[key] = self._part("objective", dict(node), join("objective", key))
        if not chosen:
            self.problems.append(Problem("every objective is switched off.", "objective", "Keep one, such as next-token."))
        return chosen

    def _layers(self, model: ModelOptions | None) -> list[Layer]:
        """One `Layer` per block; layers of one table share its part."""
        count = self._raw_layer_count() if model is None else model.num_hidden_layers
        tables, problems = layer_tables(self._table("block"), count)
        self.problems.extend(problems)
        cache: dict[str, Any] = {}
        layers = []
        for pair in tables:
            made = []
            for slot in SLOTS:
                path, tree = pair[slot].path, pair[slot].tree
                if path not in cache:
                    cache[path] = self._part(slot, tree, path)
                made.append(cache[path])
            layers.append(Layer(*made))
        return layers

    def _raw_layer_count(self) -> int:
        """The number of layers although something else in `[model]` is wrong; 0 when it is what is wrong."""
        node = self._table("model").get("num_hidden_layers")
        return node.value if isinstance(node, Leaf) and type(node.value) is int and 0 < node.value <= MOST_LAYERS else 0

    def _check_parts(self, manifest: Manifest) -> None:
        for path, part in manifest.parts():
            self.problems.extend(Problem(fact, f"{manifest.name}: {path}") for fact in part.check(manifest.site))
        self._stop()
        self.problems.extend(Problem(fact, f"{manifest.name}: parallelism") for fact in manifest.parallelism.misfits(manifest))
        self._stop()


def _sub_slot(kind: type[Options], key: str) -> str | None:
    info = kind.model_fields.get(key)
    return next((m.slot for m in info.metadata if isinstance(m, SubSlot)), None) if info else None


def _locate(tree: Tree, steps: list[str]) -> tuple[list[str], Tree | Leaf]:
    """Where a validation error lies: its path without the tags of unions, and the innermost node that exists."""
    location: list[str] = []
    node: Tree | Leaf = tree
    for step in steps:
        if isinstance(node, dict) and step in node:
            node = node[step]
            location.append(step)
        elif isinstance(node, Leaf) or step == steps[-1]:
            location.append(step)
    return location, node


def _fields(kind: type[Options], steps: list[str]) -> set[str]:
    """The options that could have stood in place of the last step."""
    records = [kind]
    for step in steps[:-1]:
        inner = [r for record in records if step in record.model_fields for r in _records(record.model_fields[step].annotation)]
        tagged = [r for r in records if "type" in r.model_fields and step in get_args(r.model_fields["type"].annotation)]
        records = inner or tagged or records
    return {name for record in records for name in record.model_fields}


def _records(annotation: Any) -> Iterator[type[Options]]:
    """The options records in a type such as `Annotated[A | B, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    for inner in get_args(annotation):
        yield from _records(inner)


def _shown(value: Any) -> Any:
    return value.table() if isinstance(value, Options) else list(value) if isinstance(value, tuple) else value


def _sentence(message: str) -> str:
    return message[0].lower() + message[1:].rstrip(".")
