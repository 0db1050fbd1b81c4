"""`vit-dist`, and `python -m vit_dist`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a Ctrl-C while it is still being imported ends it without a traceback."""
    try:
        from vit_dist.cli import main as run
    except KeyboardInterrupt:
        return 130
    try:
        return run(argv)
    finally:
        gc.freeze()  # spares the interpreter a second of looking for cycles when it ends


if __name__ == "__main__":
    sys.exit(main())
