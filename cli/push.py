"""The verb that publishes weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .console import Json, out, print_json


def push(
    source: Annotated[Path, typer.Argument(help="A folder of weights, or of a training run.")],
    target: Annotated[str, typer.Argument(help="organisation/name on the Hub, or file:path for a registry on disk.")],
    private: Annotated[bool, typer.Option("--private", help="A repository that is created is private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, created if need be.", metavar="BRANCH")] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request instead of changing the branch.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    license: Annotated[str, typer.Option(help="For the card, such as mit; that of --base-model by default.", metavar="ID")] = "",
    base_model: Annotated[str, typer.Option(help="The repository that the weights were made from.", metavar="REPOSITORY")] = "",
    locked: Annotated[bool, typer.Option("--locked", help="Refuse other versions of plugins than the model was made with.")] = False,
    json: Json = False,
) -> None:
    """Publishes weights with a model card, as one commit; a push that was cut off goes on when repeated."""
    from ..registry.push import push as publish

    done = publish(
        source,
        target,
        private=private or None,
        revision=revision,
        pull_request=pr,
        message=message,
        license=license,
        base_model=base_model,
        locked=locked,
        progress=not json,
    )
    if json:
        print_json(asdict(done))
        return
    out.print(str(done), soft_wrap=True)
