"""Writes a bundle: weights, config, classes and card, checked against the run that they are of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from regseg_d2 import __version__
from regseg_d2.apps.bundle.card import Card, Measured
from regseg_d2.apps.compare.runs import read_evaluation
from regseg_d2.common.errors import ConfigError, WriteError, listed
from regseg_d2.common.files import atomic_folder, digest_of
from regseg_d2.config.files import format_config
from regseg_d2.engine.devices import with_device
from regseg_d2.engine.provenance import weights_hash
from regseg_d2.engine.trained_model import config_of_run, load_trained_model
from regseg_d2.evaluation.inference import InferenceProtocol
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.prediction import ClassList, Predictor
from regseg_d2.prediction.bundle import (
    BUNDLE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    HUGGINGFACE_FOLDER,
    WEIGHTS_FILE,
)
from regseg_d2.segmentor.export import inference_model


@dataclass(frozen=True)
class BundleOptions:
    """What a run does not know of its model.

    Attributes:
        weights: name of a checkpoint of the run; "" is the final one, else the last one.
        title: of the card; "" is the name of the run's folder.
        license: what the model may be used for, as the hub calls it, such as ``apache-2.0``; "" is not given.
        dataset: what the model was trained on, for people; "" is the names in DATASETS.TRAIN.
        overwrite: replace the bundle that is there.
    """

    weights: str = ""
    title: str = ""
    license: str = ""
    dataset: str = ""
    overwrite: bool = False


def write_bundle(
    run: Path, folder: Path, options: BundleOptions, *, say: Callable[[str], None] = print
) -> None:
    """Writes the bundle of a run, whole or not at all.

    Before it takes its place it is loaded, and has to predict what the run's model predicts, bit for bit.

    Args:
        run: OUTPUT_DIR of the run.
        folder: the folder to write.
        options: what the run does not know.
        say: takes lines for people.

    Raises:
        UserError: the run cannot be used, or the folder must not be replaced or cannot be written.
    """
    _refuse_to_overwrite(folder, options.overwrite)
    cfg = with_device(config_of_run(run, options.weights), "cpu")
    if cfg.IMPORTS:
        raise ConfigError(
            f"'{run}' has IMPORTS {list(cfg.IMPORTS)}: its network is code of yours, which a bundle does not "
            "hold. Give that code and the run's folder away together, and load it with Predictor.from_run."
        )
    classes = ClassList.of_config(cfg)
    loaded = load_trained_model(cfg)
    model = inference_model(loaded.model, fold="none")
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    bundled = bundled_config(cfg, loaded.model, model)
    measured, left_out = measured_results(run, weights_hash(loaded.model.state_dict()))
    for line in left_out:
        say(f"Left out: {line}")
    card = Card(
        title=options.title or run.absolute().name,
        license=options.license,
        dataset=options.dataset or ", ".join(cfg.DATASETS.TRAIN),
        cfg=cfg,
        classes=classes,
        protocol=InferenceProtocol.from_config(cfg),
        measured=measured,
        completed_steps=loaded.completed_steps,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    with atomic_folder(folder, replace=options.overwrite) as draft:
        safetensors.torch.save_file(state, draft / WEIGHTS_FILE, metadata={"format": "pt"})
        (draft / CONFIG_FILE).write_text(format_config(bundled), encoding="utf-8")
        if bundled.MODEL.HUGGINGFACE.NAME:
            network: Any = model.network
            network.config.save_pretrained(draft / HUGGINGFACE_FOLDER)
        contents = _contents(cfg, classes, digest_of(draft / WEIGHTS_FILE))
        (draft / BUNDLE_FILE).write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (draft / CARD_FILE).write_text(card.text(), encoding="utf-8")
        _try(draft, cfg, loaded.model, state)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"Wrote the bundle '{folder}', {size / 1e6:.1f} MB; it predicts what the run does.")
    if not measured:
        say("Its card has no results: there is no evaluation of these weights (train_net.py --eval-only).")
    if not options.license:
        say("Its card names no licence: give one, --license NAME.")


def bundled_config(cfg: CfgNode, trained: nn.Module, model: nn.Module) -> CfgNode:
    """Makes the config that builds the model of a bundle, on any machine.

    Args:
        cfg: config of the run.
        trained: its model.
        model: the same without what training alone needs.
    """
    cfg = resolve_auto_norm(cfg)
    cfg.defrost()
    regularizers = cfg.MODEL.REGULARIZERS
    regularizers.NAMES = _needed_regularizers(trained)
    regularizers.PRETRAIN_ITERS = 0
    for section in [name for name in regularizers if "@" in name]:
        del regularizers[section]
    head = getattr(trained, "sem_seg_head", None)
    if getattr(head, "auxiliary", None) is not None and model.get_submodule("sem_seg_head").auxiliary is None:
        cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE = ""
    if cfg.MODEL.HUGGINGFACE.NAME:
        # Beside the config; what CONFIG changes is in that file.
        cfg.MODEL.HUGGINGFACE.NAME = HUGGINGFACE_FOLDER
        cfg.MODEL.HUGGINGFACE.PRETRAINED = False
        cfg.MODEL.HUGGINGFACE.CONFIG = CfgNode(new_allowed=True)
    # Files of this machine, which nobody needs to predict.
    cfg.MODEL.WEIGHTS = cfg.MODEL.TIMM.PRETRAINED = cfg.DATASETS.FREQUENCIES = ""
    cfg.DATASETS.DECLARED = []
    cfg.OUTPUT_DIR = "./output"
    cfg.MODEL.DEVICE = "cuda"
    return cfg


def _needed_regularizers(model: nn.Module) -> list[str]:
    """Names of those without which the head refuses to be built, though it uses nothing of theirs."""
    check = getattr(
        getattr(getattr(model, "sem_seg_head", None), "augment", None), "check_regularizers", None
    )
    if check is None:
        return []
    for name, regularizer in getattr(model, "regularizers", {}).items():
        try:
            check({name: regularizer})
        except ConfigError:
            continue
        return [name]
    return []


def measured_results(run: Path, weights: str) -> tuple[list[Measured], list[str]]:
    """Reads the evaluations of a run.

    Args:
        run: its OUTPUT_DIR.
        weights: hash of the weights that go into the bundle.

    Returns:
        Those of these weights; and why others are left out.

    Raises:
        UserError: a file is damaged.
    """
    measured, left_out = [], []
    for file in sorted((run / "evaluation").glob("*.json")):
        if file.stem.endswith("_predictions"):
            continue
        content = read_evaluation(file)
        if content.get("model", {}).get("weights_sha256") != weights:
            left_out.append(f"'{file}' measured other weights than those of the bundle.")
            continue
        measured.append(Measured.of(content, file.stem))
    return measured, left_out


def _contents(cfg: CfgNode, classes: ClassList, weights_sha256: str) -> dict[str, Any]:
    """What ``bundle.json`` says; the preprocessing is that of ``config.yaml``, for other programs."""
    protocol = InferenceProtocol.from_config(cfg)
    return {
        "format": FORMAT,
        "regseg_d2": __version__,
        "weights_sha256": weights_sha256,
        "classes": [
            {"name": name, "color": color}
            for name, color in zip(classes.names, classes.colors.tolist(), strict=True)
        ],
        "preprocessing": {
            "channels": cfg.INPUT.FORMAT,
            "values": "0 to 255, less the mean, over the deviation",
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "min_size": protocol.min_size,
            "max_size": protocol.max_size,
        },
        "protocol": protocol.describe(),
    }


def _try(folder: Path, cfg: CfgNode, trained: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a bundle, and compares what it holds and what it predicts with the run's model."""
    bundle = Predictor.from_bundle(folder, device="cpu")
    again = bundle.model.state_dict()
    wrong = [name for name, value in state.items() if name not in again or not _equal(value, again[name])]
    # Detectron2's DeepLab heads take no size but that of the training crop.
    pixels = np.random.default_rng(0).integers(0, 256, (*cfg.INPUT.CROP.SIZE, 3), np.uint8)
    expected = Predictor(cfg, trained, bundle.classes)(pixels, scores=True)
    got = bundle(pixels, scores=True)
    if wrong or set(again) != set(state) or not np.array_equal(got.scores, expected.scores):
        raise WriteError(
            "The bundle does not predict what the run does, and was not written: scores differ by up to "
            f"{np.abs(got.scores - expected.scores).max():.3g}; tensors that differ: {listed(wrong)}."
        )


def _equal(first: Tensor, second: Tensor) -> bool:
    """Bit for bit; NaN is equal to itself."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(*bits)


def _refuse_to_overwrite(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / BUNDLE_FILE).is_file():
        raise ConfigError(f"--output {folder} is there and is no bundle: name another folder.")
    if not overwrite:
        raise ConfigError(f"--output {folder} is there: name another folder, or say --overwrite.")
