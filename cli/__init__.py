"""The command line. Each verb imports what it needs when it runs, so that `bestiary --help` is quick."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line: exit code 0, 1 for input that cannot be used, 2 for wrong usage."""
    import warnings

    from .app import app
    from .console import report_error, report_warning

    warnings.showwarning = report_warning

    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    from ..core.errors import BestiaryError

    try:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # so that the launcher of several processes can say what happened to one
            from torch.distributed.elastic.multiprocessing.errors import record

            record(lambda: app(arguments))()
        else:
            app(arguments)
    except BestiaryError as error:
        if debug:
            raise
        report_error(error)
        sys.exit(1)
