"""Model cards: what a repository is, what it costs to run, and how to load it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..core.accounting import account
from ..core.manifest import Manifest
from .repository import FILE

CARD = "README.md"
MARK = "<!-- Written by `bestiary push`, and rewritten by the next one. Remove this line to keep your changes. -->"


def is_generated(card: bytes) -> bool:
    """Whether a card may be replaced by a new one."""
    return MARK.encode() in card


def make_card(
    manifest: Manifest,
    *,
    name: str,
    reference: str,
    files: Collection[str],
    figures: Mapping[str, Any],
    license: str = "",
    base_model: str = "",
) -> str:
    """The text of `README.md`, with the YAML header that the Hub reads.

    Args:
        manifest: the model.
        name: its title.
        reference: what to give to `bestiary.load`.
        files: what lies beside the card; decides which ways of loading it are told.
        figures: of the run that made it, as `bestiary.json` holds them.
        license: identifier, such as `mit`; left out of the header when empty.
        base_model: the repository that it was made from.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=license or None,
        base_model=base_model or None,
        library_name="transformers" if "config.json" in files else "bestiary",
        pipeline_tag="text-generation",
        tags=["bestiary", *sorted({part.use for path, part in manifest.parts() if path.startswith("block.")})],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        MARK,
        f"# {name}",
        manifest.description,
        _size(manifest),
        _parts(manifest),
        _loading(reference, files),
        _training(figures),
        _license(license, base_model, files),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _size(manifest: Manifest) -> str:
    a = account(manifest)
    rows = [
        ("parameters", f"{a.parameters:,}"),
        ("active for one token", f"{a.active_parameters:,}"),
        ("added by objectives", f"{a.objective_parameters:,}"),
        ("forward FLOPs for one token", f"{a.flops_forward:,.0f} (causal, {a.sequence_length:,} tokens)"),
        ("cache for one token", f"{a.cache_bytes_per_token:,.0f} bytes"),
        ("longest sequence", f"{manifest.model.max_position_embeddings:,} tokens"),
    ]
    return _table(("figure", ""), [row for row in rows if row[1] != "0"])


def _parts(manifest: Manifest) -> str:
    rows = [(f"`{path}`", f"`{part.use}`") for path, part in manifest.parts()]
    return "## Parts\n\n" + _table(("slot", "component"), rows) + "\n\n`bestiary.json` holds every option, and the plugins needed."


def _loading(reference: str, files: Collection[str]) -> str:
    text = f'## Loading\n\n```python\nimport bestiary\n\nmodel = bestiary.load("{reference}")\n```'
    if reference.startswith(FILE):
        return text
    if "config.json" not in files:
        return f"{text}\n\nNo architecture of transformers computes this model, so there is no `config.json`."
    loader = f'model = AutoModelForCausalLM.from_pretrained("{reference}")'
    return f"{text}\n\n```python\nfrom transformers import AutoModelForCausalLM\n\n{loader}\n```"


def _training(figures: Mapping[str, Any]) -> str:
    if not figures:
        return ""
    versions = figures.get("versions")
    rows = [(key.replace("_", " "), _figure(value)) for key, value in figures.items() if not isinstance(value, dict)]
    if isinstance(versions, dict):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return "## Training\n\n" + _table(("figure", ""), rows)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _license(license: str, base_model: str, files: Collection[str]) -> str:
    own = next((name for name in sorted(files) if name.upper().startswith("LICENSE")), "")
    if not (license or base_model or own):
        return ""
    base = f"Made from [{base_model}](https://huggingface.co/{base_model}), whose licence goes with it" if base_model else ""
    stated = f"Licence: {license}" if license else ""
    return "## Licence\n\n" + ". ".join(text for text in (base, stated, f"Its text is in `{own}`" if own else "") if text) + "."


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"| {a} | {b} |" for a, b in (header, ("---", "---"), *rows))
