"""Write the config reference: `python scripts/config_reference.py > docs/config.md`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vit_dist.cli.reference import reference

if __name__ == "__main__":
    print(reference(), end="")
