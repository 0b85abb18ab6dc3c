"""Verbs that look at manifests and components; none of them loads weights, or torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Json, Reference, Set, engineering, flops, octets, out, print_json, print_rows
from .hub import list_hub

if TYPE_CHECKING:
    from ..core.accounting import Account
    from ..core.manifest import Manifest
    from ..registry.layout import Published


def list_(
    pattern: Annotated[str, typer.Argument(help="A shell pattern.")] = "*",
    hub: Annotated[str | None, typer.Option(help="Search the Hub for these words instead.", metavar="WORDS")] = None,
    limit: Annotated[int, typer.Option(min=1, help="With --hub: repositories to show.")] = 20,
    json: Json = False,
) -> None:
    """Lists the models of the catalog, or of the Hub."""
    if hub is not None:
        list_hub(hub, limit, json)
        return
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
    from ..registry.indexed import holdings
    from ..registry.layout import published

    manifest = resolve(model, set=set or [])
    figures, tensors = account(manifest, sequence_length=sequence_length), published(manifest)
    found = holdings(model) if not set else None
    if json:
        stored = {"tensors": len(tensors), "bytes": sum(tensor.nbytes for tensor in tensors)}
        table = {"name": manifest.name, "digest": manifest.digest, **figures.table(), "published": stored, "manifest": manifest.table()}
        here = {path: said for path, part in manifest.parts() if (said := dict(part.describe()))}
        table |= {"here": here} if here else {}
        print_json(table | ({"stored": asdict(found)} if found else {}))
        return
    out.print(f"[bold]{manifest.name}[/]  {manifest.description}\n")
    print_rows("", ["slot", "component", "options"], _parts(manifest))
    for path, part in manifest.parts():
        if said := part.here():
            out.print(f"{path} here: {said}\n", soft_wrap=True)
    rows = _figures(figures, tensors)
    if found:
        commit = f" at commit {found.commit[:12]}" if found.commit else ""
        rows.append(["tensors there", f"{found.tensors:,}", f"{found.nbytes:,} bytes in {found.files:,} safetensors files{commit}"])
    print_rows("", ["figure", "", "what it counts"], rows, right=(1,))
    out.print(f"digest {manifest.digest}")


def _parts(manifest: Manifest) -> list[list[str]]:
    """Slot, component with the plugin that it came from unless built in, and its options."""
    rows = []
    for path, part in manifest.parts():
        slot = path.replace('block.at."', "layers ").replace('".', " ").replace("objective.", "objective ")
        origin = part.component.origin
        foreign = f" ({origin})" if origin and not origin.built_in else ""
        rows.append([slot, part.use + foreign, _options(part.table())])
    return rows


def _options(table: dict[str, Any]) -> str:
    """Options in a line; a sub-slot's behind its component."""
    words = []
    for key, value in table.items():
        if isinstance(value, dict):
            words.append(f"{key} {value['use']} ({_options(value)})" if "use" in value else f"{key} ({_options(value)})")
        elif key != "use" and value is not None:
            words.append(f"{key} {value}")
    return ", ".join(words)


def _figures(a: Account, tensors: list[Published]) -> list[list[str]]:
    length, stored = f"{a.sequence_length:,} tokens", sum(tensor.nbytes for tensor in tensors)
    return [
        ["parameters", f"{a.parameters:,}", "main model, router biases included"],
        ["active parameters", f"{a.active_parameters:,}", "used by one token, with head, without input embedding"],
        ["added by objectives", f"{a.objective_parameters:,}", "such as MTP, without copies of embedding and head"],
        ["forward FLOPs per token", flops(a.flops_forward), f"causal, {length}; non-causal {flops(a.flops_forward_noncausal)}"],
        ["training FLOPs per token", flops(a.flops_training), f"with objectives; {flops(a.flops_training_main)} without"],
        ["  non-causal", flops(a.flops_training_noncausal), "attention over the full square"],
        ["cache per token", octets(a.cache_bytes_per_token), "all layers"],
        ["inference memory", octets(a.inference.total), f"one device, cache of {length} in it: {octets(a.inference.cache)}"],
        ["training memory", octets(a.training.total), f"one device, AdamW, {length}: activations about {octets(a.training.activations)}"],
        ["published tensors", f"{len(tensors):,}", f"{stored:,} bytes as stored on the Hub"],
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
