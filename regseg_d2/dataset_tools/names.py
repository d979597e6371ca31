"""Which data sets a command line is about."""

from __future__ import annotations

from collections.abc import Sequence

import regseg_d2.data  # noqa: F401  registers the built-in data sets
from regseg_d2.common.errors import ConfigError
from regseg_d2.data.datasets.declared import register_declared


def named_datasets(names: Sequence[str], declared: Sequence[str]) -> list[str]:
    """Registers declared data sets, and returns the names that are meant, each once.

    Args:
        names: registered names; without any, all splits of ``declared``.
        declared: YAML files that declare data sets.

    Raises:
        ConfigError: none is named, or a declaration cannot be used.
    """
    found = register_declared(list(declared)) if declared else []
    chosen = list(dict.fromkeys(names or found))
    if not chosen:
        raise ConfigError("No data set is named: give a registered name, or a YAML file with --declared.")
    return chosen
