"""The command line: `vit-dist COMMAND`, and `python -m vit_dist`."""

from vit_dist.cli.main import main

__all__ = ["main"]
