"""Configuration: every key of this package is born in :func:`add_regseg_config`.

Keys of Detectron2 that are used as they are (``SOLVER.BASE_LR``, ...) are not repeated here; other defaults
of them are in ``defaults.py``. Reading and checking YAML files is in ``files.py``.
"""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from regseg_d2.config.data import add_data_config
from regseg_d2.config.defaults import set_defaults
from regseg_d2.config.head import add_head_config
from regseg_d2.config.model import add_huggingface_config, add_mit_config, add_model_config
from regseg_d2.config.regularizers import add_regularizer_config
from regseg_d2.config.training import add_input_config, add_solver_config, add_test_config


def get_regseg_cfg() -> CfgNode:
    """Returns a fresh copy of this package's defaults, for Detectron2's keys as well as its own."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_regseg_config(cfg)
    set_defaults(cfg)
    # Modules that are imported before the other keys are read, and that may add keys of their own. Their code
    # runs: see docs/configuration.md.
    cfg.IMPORTS = []
    return cfg


def add_regseg_config(cfg: CfgNode) -> None:
    """Adds this package's keys to ``cfg``, and changes none that is there.

    Detectron2's own programs run with it. The keys of its DeepLab project, which some heads read, are added
    by ``add_deeplab_config``; call that before.
    """
    add_model_config(cfg)
    add_mit_config(cfg)
    add_huggingface_config(cfg)
    add_head_config(cfg)
    add_regularizer_config(cfg)
    add_data_config(cfg)
    add_input_config(cfg)
    add_solver_config(cfg)
    add_test_config(cfg)

    # Deterministic kernels everywhere; slower on a GPU, and bit-equal from run to run.
    cfg.DETERMINISTIC = False
    # With several processes, parameters may take part in no loss; looking for them costs time in each step.
    cfg.FIND_UNUSED_PARAMETERS = False
    # Iterations between two lines of progress and two rows of metrics.json.
    cfg.LOG_PERIOD = 20
    # What prints and writes them, by its names in WRITER (engine/writers.py).
    cfg.WRITERS = ["terminal", "metrics_json", "tensorboard"]
