"""mmsegmentation 1.2.2 as something to compare with: its networks, and the configs here that are the same.

Nothing of this package is imported: the module also works in an environment that has mmsegmentation alone.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = "1.2.2"

_HEAD = "MODEL.SEM_SEG_HEAD."
_AUXILIARY = {f"{_HEAD}AUX.IN_FEATURE": "res4", f"{_HEAD}AUX.CHANNELS": 256}


@dataclass(frozen=True)
class Pair:
    """A network of mmsegmentation, and the same network here.

    Attributes:
        theirs: its config below mmsegmentation's ``configs/_base_/models``.
        files: names of the files below ``configs/_base_/models`` that are its config here.
        keys: keys beside those files.
    """

    theirs: str
    files: tuple[str, ...]
    keys: dict[str, Any] = field(default_factory=dict)

    def options(self) -> list[str]:
        """Keys and values in turn: ``keys``, 19 classes and plain batch norm, on the CPU."""
        common = {"MODEL.DEVICE": "cpu", f"{_HEAD}NUM_CLASSES": 19, f"{_HEAD}NORM": "BN"}
        return [str(item) for pair in {**common, **self.keys}.items() for item in pair]

    def write_config(self, models: Path, folder: Path) -> Path:
        """Writes a config that joins the files.

        Args:
            models: the folder ``configs/_base_/models``.
            folder: where to write ``config.yaml``.
        """
        bases = ", ".join(str(models / f"{file}.yaml") for file in self.files)
        path = folder / "config.yaml"
        path.write_text(f"_BASE_: [{bases}]\n")
        return path


def _resnet(name: str, **keys: Any) -> Pair:
    files = (f"{name}_resnet50_os8", "mmseg_conventions")
    return Pair(f"{name}_r50-d8.py", files, {**_AUXILIARY, **keys})


PAIRS = {
    # Their head has a third block, on the input as well.
    "fcn_r50": _resnet("fcn", **{f"{_HEAD}FCN_NUM_CONVS": 2, f"{_HEAD}CONCAT_INPUT": True}),
    "pspnet_r50": _resnet("pspnet"),
    "deeplabv3_r50": _resnet("deeplabv3"),
    "deeplabv3plus_r50": Pair("deeplabv3plus_r50-d8.py", ("deeplabv3plus_resnet50_mmseg",), _AUXILIARY),
    "fpn_r50": Pair("fpn_r50.py", ("semantic_fpn_resnet50_mmseg",)),
    "nonlocal_r50": _resnet("nonlocal"),
    "ccnet_r50": _resnet("ccnet"),
    "danet_r50": _resnet("danet"),
    "encnet_r50": _resnet("encnet"),
    "ocrnet_r50": Pair("ocrnet_r50-d8.py", ("ocrnet_resnet50_os8", "mmseg_conventions")),
    "ocrnet_hr18": Pair("ocrnet_hr18.py", ("ocrnet_hrnet_w18",)),
    "fcn_hr18": Pair("fcn_hr18.py", ("fcn_hrnet_w18",)),
    "upernet_swin_t": Pair("upernet_swin.py", ("upernet_swin_tiny",), _AUXILIARY),
    "segformer_b0": Pair("segformer_mit-b0.py", ("segformer_mit_b0",)),
}


def import_mmsegmentation() -> types.ModuleType:
    """Imports mmseg with a stand-in for mmcv's compiled operations, and registers its modules.

    Raises:
        ImportError: mmsegmentation, or something that it needs, is not there.
        RuntimeError: it has another version.
    """
    extension = types.ModuleType("mmcv._ext")
    extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)
    extension.__getattr__ = _operation  # type: ignore[method-assign]
    sys.modules["mmcv._ext"] = extension
    import mmcv

    # mmsegmentation 1.2.2 asks for a version below the newest.
    mmcv.__version__ = "2.1.0"
    import mmseg
    from mmseg.utils import register_all_modules

    if mmseg.__version__ != VERSION:
        raise RuntimeError(f"{mmseg.__file__}: mmsegmentation {mmseg.__version__}; expected {VERSION}")
    register_all_modules(init_default_scope=True)
    return mmseg


def _operation(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError(f"{name} is one of mmcv's compiled operations")

    return refuse


def network_config(name: str) -> dict[str, Any]:
    """A network's config in mmsegmentation, with plain batch norm and nothing to download.

    Args:
        name: key of :data:`PAIRS`.
    """
    import mmseg
    from mmengine.config import Config

    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_" / "models"
    config = Config.fromfile(folder / PAIRS[name].theirs).model.to_dict()
    config["pretrained"] = None
    return _with_plain_batch_norm(config)


def _with_plain_batch_norm(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_plain_batch_norm(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_plain_batch_norm(inner) for inner in value)
    return "BN" if value == "SyncBN" else value
