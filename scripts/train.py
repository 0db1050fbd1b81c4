"""Train: `accelerate launch scripts/train.py --config mnist --optimizer.lr 3e-4`, or with plain python."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vit_dist.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
