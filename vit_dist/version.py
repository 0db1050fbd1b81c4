"""The version of vit_dist."""

__version__ = "0.1.0"
