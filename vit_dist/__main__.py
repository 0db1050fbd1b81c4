"""`vit-dist`, and `python -m vit_dist`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a Ctrl-C while it is still being imported ends it without a traceback."""
    try:
        from vit_dist.cli import main as run
    except KeyboardInterrupt:
        return 130
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
