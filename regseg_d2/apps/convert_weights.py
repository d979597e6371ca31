"""What ``tools/convert_weights.py`` does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.common.files import atomic_writer
from regseg_d2.config.files import load_config
from regseg_d2.segmentor.build import build_model
from regseg_d2.weights.network import Network
from regseg_d2.weights.parts import is_classifier_of_other_classes
from regseg_d2.weights.published import CONVERTED_FROM, SOURCES, Conversion, convert, has_decode_head
from regseg_d2.weights.reading import read_weights

#: Endings of files that MODEL.WEIGHTS reads with torch.
_OUTPUT_ENDINGS = (".pth", ".pt")


def convert_file(
    input_path: str,
    output_path: str,
    *,
    source: str,
    config_file: str = "",
    opts: Sequence[str] = (),
    min_backbone_share: float | None = None,
    backbone_only: bool = False,
    list_used: bool = False,
    trust_pickle: bool = False,
) -> str:
    """Converts a checkpoint and writes it, whole or not at all; returns what became of the tensors, in words.

    Args:
        input_path: the checkpoint of the other package.
        output_path: the file to write.
        source: key of ``SOURCES``.
        config_file: config of the network, or "" for the defaults.
        opts: changes to the config, keys and values in turn.
        min_backbone_share: share of the backbone's tensors that must be found, where whole stages may be new;
            None is every stage.
        backbone_only: whether to leave the file's head out.
        list_used: name each tensor that is used.
        trust_pickle: read files that can run code.

    Raises:
        UserError: a file, key or value cannot be used, or the checkpoint does not fit.
    """
    _check_paths(input_path, output_path)
    state = read_weights(input_path, trust_pickle=trust_pickle)
    network = _build_network(config_file, opts)
    conversion = convert(
        state,
        SOURCES[source],
        network,
        input_path,
        min_backbone_share,
        whole=True,
        backbone_only=backbone_only,
    )
    if not conversion.weights:
        raise CheckpointError(f"'{input_path}': none of its {len(state)} tensors fits the network.")
    weights = {name: value.contiguous() for name, value in conversion.weights.items()}
    with atomic_writer(output_path, "wb") as file:
        torch.save({"model": weights, CONVERTED_FROM: source}, file)
    return _describe(conversion, network, output_path, list_used)


def _check_paths(input_path: str, output_path: str) -> None:
    if not output_path.endswith(_OUTPUT_ENDINGS):
        raise ConfigError(f"OUT is '{output_path}'; expected a name that ends with {_OUTPUT_ENDINGS[0]}")
    if Path(input_path).resolve() == Path(output_path).resolve():
        raise ConfigError(f"OUT is IN, '{input_path}'; give another name")


def _build_network(config_file: str, opts: Sequence[str]) -> Network:
    import regseg_d2.segmentor  # noqa: F401  registers networks

    cfg = load_config(config_file, list(opts))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.REGULARIZERS.NAMES = []
    return Network.of(cfg, build_model(cfg))


def _describe(conversion: Conversion, network: Network, path: str, list_used: bool) -> str:
    used = {name: conversion.weights[name].shape for name in conversion.report.loaded}
    new = {name: network.shapes[name] for name in conversion.report.new}
    dropped = {name: conversion.dropped[name].shape for name in conversion.report.dropped}
    others = [
        f"{name}: {file} in the file, {here} in the network{_comment(name, file, here)}"
        for name, file, here in conversion.report.mismatched
    ]
    rows = [
        ("used", len(used), _with_shapes(used) if list_used else _counted(used)),
        ("new (in the network only)", len(new), _with_shapes(new)),
        ("dropped (in the file only)", len(dropped), _with_shapes(dropped)),
        ("other shape (not used)", len(others), "\n".join(others)),
    ]
    lines = [
        tabulate(rows, headers=("", "tensors", "which"), tablefmt="simple"),
        f"Backbone: {conversion.backbone_share:.1%} of {len(network.backbone_tensors)} tensors.",
        f"Images, as checkpoints of {conversion.source.title} expect them: {conversion.images}",
    ]
    if not has_decode_head(conversion):
        kind = f" Of the file's head: {conversion.head_kind}." if conversion.head_kind else ""
        lines.insert(2, f"Head: none of it is from the file.{kind}")
    if conversion.warning:
        lines.append(f"Warning: {conversion.warning}")
    return "\n".join([*lines, f"Wrote '{path}'; load it with MODEL.WEIGHTS {path}"])


def _comment(name: str, file: tuple[int, ...], here: tuple[int, ...]) -> str:
    """Says where a tensor belongs to a classifier of another number of classes."""
    return ": a classifier of other classes" if is_classifier_of_other_classes(name, file, here) else ""


def _with_shapes(shapes: Mapping[str, torch.Size]) -> str:
    """One line a module: its tensors with their shapes."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        module, _, tensor = name.rpartition(".")
        modules[module].append(f"{tensor} {tuple(shape)}")
    return "\n".join(f"{module}: {', '.join(tensors)}" for module, tensors in modules.items())


def _counted(shapes: Mapping[str, torch.Size]) -> str:
    """One line for each part of the network: how many tensors and values of it there are."""
    parts: dict[str, list[int]] = defaultdict(list)
    for name, shape in shapes.items():
        parts[".".join(name.split(".")[:3])].append(shape.numel())
    return "\n".join(f"{part}: {len(sizes)} tensors, {sum(sizes):,} values" for part, sizes in parts.items())
