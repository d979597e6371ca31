"""Names and colours of the classes of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import regseg_d2.data  # noqa: F401  registers the built-in data sets
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.data.checks import check_head
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.records import require_registered
from regseg_d2.drawing.pictures import class_colors


@dataclass(frozen=True, eq=False)
class ClassList:
    """The classes that labels stand for.

    Attributes:
        names: K class names; the label i is names[i].
        colors: (K, 3) uint8, RGB.
    """

    names: tuple[str, ...]
    colors: np.ndarray

    @classmethod
    def of_dataset(cls, name: str) -> ClassList:
        """Takes those of a registered data set."""
        metadata = MetadataCatalog.get(name)
        names = tuple(metadata.stuff_classes)
        return cls(names, class_colors(metadata, len(names)))

    @classmethod
    def of_config(cls, cfg: CfgNode) -> ClassList:
        """Takes those of the first data set of a config; declared ones are registered.

        Raises:
            ConfigError: it names no data set or an unknown one, or the head has another number of classes.
        """
        names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        if not names:
            raise ConfigError(
                "DATASETS.TEST and DATASETS.TRAIN name no data set; names and colours of the classes are a "
                "data set's. Give the config that the model was trained with."
            )
        register_declared(cfg.DATASETS.DECLARED)
        require_registered(names[0])
        check_head(cfg, names[0])
        return cls.of_dataset(names[0])

    def index(self, name: str) -> int:
        """Returns the label of a class.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self.names:
            known = ", ".join(self.names)
            raise ConfigError(
                f"There is no class {name!r}{did_you_mean(name, self.names)}; the classes are {known}."
            )
        return self.names.index(name)
