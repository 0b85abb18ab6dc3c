"""Every verb, in the order in which a newcomer meets them."""

from __future__ import annotations

import typer

from . import convert, cost, extend, generate, hub, inspect, place, plan, push, simulate, studies

app = typer.Typer(
    name="bestiary",
    help="Language models like DeepSeek-V3, assembled from swappable parts. Add --debug for a traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (inspect.list_, inspect.show, inspect.explain, inspect.validate, inspect.diff, inspect.plugins):
    app.command(verb.__name__.rstrip("_"))(verb)
for verb in (hub.pull, push.push, convert.convert, convert.verify, plan.plan, cost.cost, simulate.simulate, place.place):
    app.command(verb.__name__)(verb)
for verb in (studies.train, studies.ablate, extend.extend, generate.generate):
    app.command(verb.__name__)(verb)
