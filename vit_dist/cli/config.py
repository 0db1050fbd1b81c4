"""The `config` command: print the JSON schema of a config, for editors."""

from __future__ import annotations

import json

from vit_dist.errors import UserError

_HELP = """usage: vit-dist config schema

Print the JSON schema of a config in YAML: every section and field with its description, type, choices, bounds and
default. Editors use it to complete and check a config. Write it next to your config and name it in the first line:

  vit-dist config schema > schema.json
  # yaml-language-server: $schema=schema.json

docs/config.md lists the same fields."""


def config(words: list[str]) -> int:
    """Run `config schema`; return the exit code. Raises UserError."""
    if not words or words[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    if words != ["schema"]:
        raise UserError(f"config: takes schema alone, not {' '.join(words)}; see vit-dist config --help")
    from vit_dist.config.checking import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
