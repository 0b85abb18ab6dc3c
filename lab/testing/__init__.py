"""The conformance kit, `bestiary.testing`: any component on any layout must compute what one process computes.

    from bestiary import testing

    with testing.Processes(4) as processes:
        testing.assert_same(processes, testing.Case(manifest, {"use": "dualpipe-v", "pp": 2, "dp": 2, "ep": 2, "micro_batches": 4}))

`manifest` is the data of a small manifest that names the component under test.
"""

from .conformance import Case, Outcome, assert_same, outcome
from .processes import Processes, ProcessesFailed

__all__ = ["Case", "Outcome", "Processes", "ProcessesFailed", "assert_same", "outcome"]
