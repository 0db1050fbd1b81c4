"""Evaluate on several processes: `accelerate launch scripts/evaluate.py runs/NAME`, or with plain python."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vit_dist.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
