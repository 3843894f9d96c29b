"""The one error that a user is meant to read, and the edge that prints it without a traceback."""

import sys
from collections.abc import Callable


class PipelineError(Exception):
    """Something the user can mend.

    The message names the thing, the value found, what was expected and where:
    `mix.weights.coding: -0.2; expected greater than or equal to 0 (params.yaml)`.
    """


def run(main: Callable[[], None]) -> None:
    """Call a stage's `main`; on a PipelineError print one line to stderr and exit with status 2.

    Where DVC runs the stage, what it reads is checked before and after (stages/common/integrity.py).
    """
    from stages.common import integrity

    try:
        with integrity.checked():
            main()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
