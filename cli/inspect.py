"""Verbs that look at manifests and components; none of them loads weights, or torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Json, Reference, Set, engineering, octets, out, print_json, print_rows

if TYPE_CHECKING:
    from ..core.accounting import Account
    from ..core.manifest import Manifest


def list_(pattern: Annotated[str, typer.Argument(help="A shell pattern.")] = "*", json: Json = False) -> None:
    """Lists the models of the catalog."""
    from ..core.accounting import account
    from ..registry.catalog import list_models, resolve

    manifests = [resolve(name) for name in list_models(pattern)]
    counts = [account(manifest) for manifest in manifests]
    if json:
        print_json(
            [
                {"name": m.name, "parameters": c.parameters, "active_parameters": c.active_parameters}
                for m, c in zip(manifests, counts, strict=True)
            ]
        )
        return
    rows = [
        [m.name, engineering(c.parameters), engineering(c.active_parameters), m.description.partition(". ")[0].rstrip(".") + "."]
        for m, c in zip(manifests, counts, strict=True)
    ]
    print_rows("", ["model", "parameters", "active", "description"], rows, right=(1, 2))


def show(
    model: Reference,
    set: Set = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens per sequence for FLOPs and memory; 4096 or what the model allows.")
    ] = None,
    json: Json = False,
) -> None:
    """Shows what a model is made of and what it costs, without its weights."""
    from ..core.accounting import account
    from ..registry.catalog import resolve
    from ..registry.layout import published

    manifest = resolve(model, set=set or [])
    figures, layout = account(manifest, sequence_length=sequence_length), published(manifest)
    if json:
        print_json(
            {"name": manifest.name, "digest": manifest.digest, **figures.table(), "published": layout.table(), "manifest": manifest.table()}
        )
        return
    out.print(f"[bold]{manifest.name}[/]  {manifest.description}\n")
    print_rows("Parts", ["slot", "component", "from", "what it is"], _parts(manifest))
    print_rows("Figures", ["", "", ""], _figures(figures, layout), right=(1,))
    out.print(f"digest {manifest.digest}")


def _parts(manifest: Manifest) -> list[list[str]]:
    return [
        [path.replace('block.at."', "layers ").replace('".', " "), part.use, str(part.component.origin or ""), part.component.summary]
        for path, part in manifest.parts()
    ]


def _figures(a: Account, layout: Any) -> list[list[str]]:
    length = f"{a.sequence_length:,} tokens"
    return [
        ["parameters", f"{a.parameters:,}", "main model, router biases included"],
        ["active parameters", f"{a.active_parameters:,}", "used by one token; head included, input embedding not"],
        ["added by objectives", f"{a.objective_parameters:,}", "such as MTP; copies of embedding and head not counted"],
        [
            "forward FLOPs per token",
            engineering(a.flops_forward),
            f"causal at {length}; non-causal {engineering(a.flops_forward_noncausal)}",
        ],
        ["training FLOPs per token", engineering(a.flops_training), f"objectives included; {engineering(a.flops_training_main)} without"],
        ["  non-causal", engineering(a.flops_training_noncausal), "attention counted over the full square"],
        ["cache per token", octets(a.cache_bytes_per_token), "all layers, in the dtype of activations"],
        [
            "inference memory",
            octets(a.inference.total),
            f"weights {octets(a.inference.weights)}, cache of {length} {octets(a.inference.cache)}",
        ],
        [
            "training memory",
            octets(a.training.total),
            f"AdamW, one sequence of {length}, one device; activations {octets(a.training.activations)} (estimate)",
        ],
        ["published tensors", f"{layout.tensors:,}", f"{layout.bytes:,} bytes, as stored on the Hub"],
    ]


def explain(model: Reference, set: Set = None, json: Json = False) -> None:
    """Prints every resolved option and where its value comes from."""
    from ..registry.catalog import resolve

    settings = resolve(model, set=set or []).settings
    if json:
        print_json([{"path": s.path, "value": s.value, "source": s.source} for s in settings])
        return
    print_rows("", ["option", "value", "set by"], [[s.path, _value(s.value), s.source] for s in settings])


def validate(model: Reference, set: Set = None) -> None:
    """Checks a manifest and says everything that is wrong with it."""
    from ..registry.catalog import resolve

    manifest = resolve(model, set=set or [])
    out.print(f"{manifest.name}: valid, digest {manifest.digest}")


def diff(first: Reference, second: Reference, set: Set = None, json: Json = False) -> None:
    """Prints what differs between two models, resolved; --set applies to the second."""
    from ..core.manifest_diff import differences
    from ..registry.catalog import resolve

    a, b = resolve(first), resolve(second, set=set or [])
    rows = differences(a, b)
    if json:
        print_json([{"path": path, a.name: x, b.name: y} for path, x, y in rows])
    elif rows:
        print_rows("", ["option", a.name, b.name], [[path, _value(x), _value(y)] for path, x, y in rows])
    else:
        out.print(f"{a.name} and {b.name} resolve to the same model, digest {a.digest}")


def plugins(json: Json = False) -> None:
    """Lists plugins, their components, and plugins that did not load."""
    from ..core.plugins import plugins as known

    found = known()
    rows = [[slot, c.name, str(c.origin), c.summary] for slot, components in sorted(found.slots.items()) for c in components.values()]
    if json:
        keys = ("slot", "component", "plugin", "summary")
        print_json({"components": [dict(zip(keys, row, strict=True)) for row in rows], "broken": found.broken, "blocked": found.blocked})
        return
    print_rows("", ["slot", "component", "plugin", "what it is"], rows)
    for name, why in found.broken.items():
        out.print(f"[yellow]not loaded:[/] {name}: {why}", soft_wrap=True)
    for name in found.blocked:
        out.print(f"[yellow]blocked:[/] {name}")


def _value(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
