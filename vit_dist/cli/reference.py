"""Write docs/config.md, the reference of every config field."""

from __future__ import annotations

from vit_dist.cli.flags import config_flags
from vit_dist.config.values import describe


def reference() -> str:
    """docs/config.md: every field of the config, from the dataclasses themselves."""
    lines = [
        "# Config reference",
        "",
        "Every field, as `--section.field VALUE` on the command line or `section: {field: VALUE}` in YAML; recipes set",
        "other values than these defaults. Fields marked · belong to a run's identity: they can change its result.",
        "Lengths of time have units: `20 epochs`, `5000 updates`, `1e6 samples`, and inside a run `5%`.",
        "This page is written by `python scripts/config_reference.py > docs/config.md`.",
    ]
    section = ""
    for flag, field, kind in config_flags():
        if flag.split(".")[0] != section:
            section = flag.split(".")[0]
            lines += ["", f"## {section}", "", "| field | value | default | meaning |", "| --- | --- | --- | --- |"]
        default = field.default_factory() if callable(field.default_factory) else field.default
        shown = "" if default in ("", (), None, {}) else f"`{str(default).lower() if kind is bool else default}`"
        mark = "" if field.metadata["free"] else " ·"
        cells = [f"`{flag}`{mark}", describe(kind), shown, field.metadata["meaning"]]
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"
