"""Data: data sets, the label reader, augmentation, sampling and loading.

Importing this package registers the built-in data sets; their files are looked for on first use.
"""

from regseg_d2.data.datasets import DatasetSpec, register_builtin_datasets

__all__ = ["DatasetSpec"]

register_builtin_datasets()
