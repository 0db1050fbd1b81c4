"""Write docs/config.md, the reference of every field of the config."""

from __future__ import annotations

from vit_dist.config.option import Option
from vit_dist.config.schema import all_options, sections
from vit_dist.config.values import describe

_HEAD = """# Config reference

Every field, as `--section.field VALUE` on the command line or `section: {field: VALUE}` in YAML. The defaults are
those of the field alone; recipes set others. Fields marked · can change the result of a run and are part of its
identity. Lengths of time have units: `20 epochs`, `5000 updates`, `1e6 samples` and, within a run, `5%`.
`vit-dist config schema` prints the same as a JSON schema. This page is generated: `python scripts/config_reference.py
> docs/config.md`."""


def reference() -> str:
    """Return the text of docs/config.md."""
    lines = [_HEAD]
    for section, kind in sections().items():
        lines += ["", f"## {section}", "", kind.__doc__, ""]
        lines += ["| field | value | default | description |", "| --- | --- | --- | --- |"]
        lines += [_row(name, option) for name, option in all_options() if name.startswith(f"{section}.")]
    return "\n".join(lines) + "\n"


def _row(name: str, option: Option) -> str:
    default = option.shown_default()
    cells = [
        f"`{name}`{' ·' if option.changes_result else ''}",
        "; ".join(part for part in (describe(option.type), str(option.bounds)) if part),
        f"`{default}`" if default else "",
        option.description,
    ]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
