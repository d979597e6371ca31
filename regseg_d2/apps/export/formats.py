"""Files that run without this package: TorchScript, torch.export, ONNX."""

from __future__ import annotations

import importlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from regseg_d2.apps.export.padding import SIZES, with_fixed_padding
from regseg_d2.apps.export.pooling import PoolingAsProducts
from regseg_d2.common.errors import UserError

#: Under this name a file has its metadata, a text in JSON.
METADATA_KEY = "regseg_d2"
_METADATA_FILE = f"{METADATA_KEY}.json"
# The name of the input in files that name it.
INPUT_NAME = "images"

Runner = Callable[[Tensor], Tensor]


class ExportError(UserError):
    """A network that a format cannot hold, or a file that does not compute what the network does."""


class Format(ABC):
    """A kind of file.

    Attributes:
        title: what it is called.
        suffix: how its files end.
    """

    title: ClassVar[str]
    suffix: ClassVar[str]

    def require(self) -> None:  # noqa: B027  most need nothing
        """Raises UserError where a package that it needs is not installed."""

    @abstractmethod
    def write(
        self, network: nn.Module, example: Tensor, path: Path, metadata: str, *, any_size: bool
    ) -> None:
        """Writes a network.

        Args:
            network: from one tensor to one, in evaluation mode.
            example: an input ``(N, 3, H, W)`` to go through it with.
            path: the file.
            metadata: goes into it.
            any_size: whether height and width are free; the number of images always is.

        Raises:
            ExportError: the network cannot be written so.
        """

    @abstractmethod
    def load(self, path: Path) -> Runner:
        """Loads a file as its user would."""

    @abstractmethod
    def read_metadata(self, path: Path) -> str:
        """Returns the metadata of a file."""


class TorchScript(Format):
    """A trace, for libtorch and ``torch.jit.load``."""

    title, suffix = "TorchScript", ".ts"

    def write(
        self, network: nn.Module, example: Tensor, path: Path, metadata: str, *, any_size: bool
    ) -> None:
        """Traces the network."""
        with _export_errors(self.title, any_size), warnings.catch_warnings(), torch.no_grad():
            # What a tracer warns of, sizes that become constants, is what the check at other sizes finds.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network, (example,), check_trace=False)
            torch.jit.save(traced, str(path), _extra_files={_METADATA_FILE: metadata})

    def load(self, path: Path) -> Runner:
        """Loads the file on the CPU."""
        return _quietly(lambda: torch.jit.load(str(path), map_location="cpu"))

    def read_metadata(self, path: Path) -> str:
        """Reads the file in the archive."""
        extra: dict[str, Any] = {_METADATA_FILE: ""}
        _quietly(lambda: torch.jit.load(str(path), map_location="cpu", _extra_files=extra))
        return _text(extra[_METADATA_FILE])


class TorchExport(Format):
    """A graph of ATen operations, for ``torch.export.load`` and AOTInductor."""

    title, suffix = "torch.export", ".pt2"

    def write(
        self, network: nn.Module, example: Tensor, path: Path, metadata: str, *, any_size: bool
    ) -> None:
        """Exports the graph."""
        program = export_program(network, example, self.title, any_size=any_size)
        with _export_errors(self.title, any_size):
            torch.export.save(program, path, extra_files={_METADATA_FILE: metadata})

    def load(self, path: Path) -> Runner:
        """Loads the graph, with what it says about sizes."""
        return torch.export.load(path).module()

    def read_metadata(self, path: Path) -> str:
        """Reads the file in the archive."""
        extra: dict[str, Any] = {_METADATA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        return _text(extra[_METADATA_FILE])


class Onnx(Format):
    """An ONNX graph of torch's exporter of graphs (not the one of traces)."""

    title, suffix = "ONNX", ".onnx"
    _DIMENSIONS = ("batch", "height", "width")

    def require(self) -> None:
        """Raises UserError where onnx, onnxruntime or onnxscript is not installed."""
        for name in ("onnx", "onnxruntime", "onnxscript"):
            optional_package(name)

    def write(
        self, network: nn.Module, example: Tensor, path: Path, metadata: str, *, any_size: bool
    ) -> None:
        """Exports the graph, and checks it with ONNX's own checker."""
        onnx = optional_package("onnx")
        output = str(network.output).replace("-", "_")
        program = export_program(network, example, self.title, any_size=any_size)
        with _export_errors(self.title, any_size), warnings.catch_warnings(), errors_only("torch.onnx"):
            warnings.simplefilter("ignore")
            exported: Any = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[output],
                verbose=False,
            )
            exported.save(str(path), external_data=False)
            model = onnx.load(str(path))
            _rename_dimensions(model.graph, self._DIMENSIONS)
            onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
            onnx.checker.check_model(model)
            onnx.save(model, str(path))

    def load(self, path: Path) -> Runner:
        """Makes a session of ONNX Runtime on the CPU, with as many threads as torch has."""
        runtime = optional_package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Tensor:
            (output,) = session.run(None, {INPUT_NAME: np.ascontiguousarray(images.numpy())})
            return torch.from_numpy(output)

        return run

    def read_metadata(self, path: Path) -> str:
        """Reads the property of the model."""
        model = optional_package("onnx").load(str(path), load_external_data=False)
        return {item.key: item.value for item in model.metadata_props}[METADATA_KEY]


#: By the names of the command line.
FORMATS: dict[str, Format] = {
    "torchscript": TorchScript(),
    "torch-export": TorchExport(),
    "onnx": Onnx(),
}


def optional_package(name: str) -> Any:
    """Imports a package of the extra ``export``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"ONNX files need {name} ({error}); run: pip install onnx onnxruntime onnxscript, or install "
            "regseg_d2[export]."
        ) from error


def export_program(
    network: nn.Module, example: Tensor, title: str, *, any_size: bool
) -> torch.export.ExportedProgram:
    """Makes the graph of a network with torch.export.

    Raises:
        ExportError: torch cannot, or not for any size.
    """
    dynamic = torch.export.Dim.DYNAMIC
    dimensions = {0: dynamic, 2: dynamic, 3: dynamic} if any_size else {0: dynamic}
    with _export_errors(title, any_size), torch.no_grad(), PoolingAsProducts():
        height, width = example.shape[-2:]
        network = with_fixed_padding(network, SIZES if any_size else [(height, width)])
        return torch.export.export(network, (example,), dynamic_shapes=(dimensions,), strict=False)


@contextmanager
def _export_errors(title: str, any_size: bool) -> Iterator[None]:
    """Turns whatever torch raises into an error that says what to try."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cure = "--size HEIGHT WIDTH may do, for images of that size; else" if any_size else "Take"
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ExportError(
            f"torch cannot export this network to {title} ({type(error).__name__}: {first[:300]}). "
            f"{cure} another format (docs/export.md says which networks go)."
        ) from error


@contextmanager
def errors_only(name: str | None) -> Iterator[None]:
    """Keeps what a logger says of less than errors off the terminal; None is the root logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _rename_dimensions(graph: Any, names: tuple[str, str, str]) -> None:
    """Gives the free dimensions of the input names that people know, wherever they stand alone."""
    (image,) = graph.input
    dimensions = image.type.tensor_type.shape.dim
    known = {
        dimensions[axis].dim_param: name
        for axis, name in zip((0, 2, 3), names, strict=True)
        if dimensions[axis].dim_param
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in known:
                dimension.dim_param = known[dimension.dim_param]


def _quietly(load: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return load()


def _text(content: str | bytes) -> str:
    return content.decode() if isinstance(content, bytes) else content
