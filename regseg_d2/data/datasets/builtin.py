"""Registration of the benchmark data sets, some under names that Detectron2 registers too."""

from __future__ import annotations

import logging

from detectron2.data import DatasetCatalog, MetadataCatalog

from regseg_d2.data.datasets.spec import DatasetSpec, registered_spec

logger = logging.getLogger(__name__)

_DETECTRON2 = "detectron2.data.datasets.builtin"


def register_builtin(spec: DatasetSpec) -> None:
    """Registers a benchmark data set, in the place of Detectron2's own of that name.

    Detectron2 registers Cityscapes and ADE20K for files that scripts of theirs have to make first, and with
    another evaluator; importing ``detectron2.data`` always does that before this runs. What anyone else has
    registered under the name stays.
    """
    if spec.name in DatasetCatalog and registered_spec(spec.name) is None:
        owner = DatasetCatalog[spec.name].__module__
        if owner != _DETECTRON2:
            logger.warning(
                'The data set "%s" was registered by the module %s before regseg_d2.data was imported: that '
                "one is used, not the built-in one.",
                spec.name,
                owner,
            )
            return
        DatasetCatalog.remove(spec.name)
        MetadataCatalog.remove(spec.name)
    spec.register()
