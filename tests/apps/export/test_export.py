"""Exported files compute what the network does; what does not agree is not written."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from regseg_d2.apps.export.agreement import Agreement, compare, made_up_images
from regseg_d2.apps.export.description import read_description
from regseg_d2.apps.export.exporting import Request, export_network
from regseg_d2.apps.export.formats import FORMATS, ExportError, export_program
from regseg_d2.apps.export.network import ExportedNetwork, as_labels
from regseg_d2.common.errors import CheckpointError, ConfigError, UserError
from regseg_d2.config.files import format_config, load_config
from regseg_d2.drawing.pictures import class_colors
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.evaluation.inference import build_predictor
from tests.helpers import small_cfg
from tests.huggingface_networks import huggingface_cfg

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "configs" / "_base_" / "models"
SIZES = ((64, 96), (101, 77), (96, 160))
# Larger than a window of the small Swin's last stage; no feature has the side of one of UPerNet's grids.
LARGER_SIZES = ((128, 224), (130, 200), (250, 140))
_THIN = ["MODEL.SEM_SEG_HEAD.CONTEXT_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"]

# What is small of the networks of configs/.
CHANGES = {
    "deeplabv3_efficientnet_lite0_res4": _THIN,
    "upernet_swin_tiny": [
        *_THIN,
        *(
            "MODEL.TIMM.OPTIONS",
            "{embed_dim: 8, depths: [2, 1, 1, 1], num_heads: [1, 1, 2, 2], window_size: 2}",
        ),
        *("MODEL.TIMM.DROP_PATH", "0.0"),
    ],
    "segformer_mit_b0": [
        *("MODEL.MIT.EMBED_DIMS", "[8, 8, 20, 32]", "MODEL.MIT.NUM_LAYERS", "[1, 1, 1, 1]"),
        *_THIN,
    ],
    "ocrnet_hrnet_w18": [
        *_THIN,
        "MODEL.TIMM.NAME",
        "hrnet_w18_small",
        "MODEL.SEM_SEG_HEAD.AUX.CHANNELS",
        "16",
    ],
}


def config_of(name):
    """The config of a small network, by the name of what it is a small one of."""
    if name in CHANGES:
        return load_config(str(MODELS / f"{name}.yaml"), CHANGES[name]).clone()
    if name == "mask2former":
        return huggingface_cfg("mask2former")
    if name == "DeepLabV3":
        return small_cfg("ASPP", SEM_SEG_HEAD__IN_FEATURES=["res4"])
    return small_cfg(name)


def saved(cfg, folder, prepare=lambda model: None):
    """Writes a config, and weights that differ from where a training starts; returns the config's file."""
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 10
    cfg.MODEL.TIMM.PRETRAINED = ""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("cooccurrence_val",)
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1 and "var" not in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif name.endswith(("predictor.weight", "mask_projection.weight")):
                tensor.normal_(std=0.5)
    prepare(model)
    if hasattr(model, "sem_seg_head"):
        # No class is ahead everywhere.
        with torch.no_grad():
            means = model.feature_logits(made_up_images((2, 128, 128), seed=5)).mean(dim=(0, 2, 3))
            model.sem_seg_head.predictor.bias.sub_(means)
    weights = folder / "model.pth"
    torch.save({"model": model.state_dict()}, weights)
    cfg.MODEL.WEIGHTS = str(weights)
    config = folder / "config.yaml"
    config.write_text(format_config(cfg))
    return str(config)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The config of a small FCN with weights."""
    return saved(small_cfg("FCN"), tmp_path_factory.mktemp("plain"))


def exported(config, path, format, **request):
    """Exports and returns the loaded file, and what was said."""
    said = []
    request.setdefault("check_sizes", SIZES)
    export_network(Request(config_file=config, output=path, format=format, **request), say=said.append)
    return FORMATS[format].load(path), said


@pytest.fixture(scope="module")
def labels_files(plain, tmp_path_factory):
    """Exports it once in each format; gives the file and what was said."""
    made = {}

    def file_of(format):
        if format not in made:
            path = tmp_path_factory.mktemp(format) / f"out{FORMATS[format].suffix}"
            made[format] = (path, exported(plain, path, format)[1])
        return made[format]

    return file_of


def labels_of(config, images):
    """What this package predicts for a batch."""
    cfg = load_config(config)
    predict = build_predictor(cfg, load_trained_model(cfg).model)
    return torch.stack([predict([{"image": image}])[0]["sem_seg_labels"] for image in images])


def check_labels(config, run, sizes=SIZES, batches=(1, 3)):
    """The file has this package's labels, whatever the number and size of the images."""
    seen = set()
    for number in batches:
        for size in sizes:
            images = made_up_images((number, *size), seed=7)
            expected, found = labels_of(config, images), run(images)
            assert found.shape == (number, *size) and found.dtype == torch.uint8
            # Two scores that are equal but for rounding may change places.
            assert (found == expected).double().mean() > 0.999
            seen |= set(expected.unique().tolist())
    assert len(seen) > 1  # else equal labels would mean little


@pytest.mark.parametrize("format", FORMATS)
def test_labels_are_those_of_the_package_at_any_size(plain, labels_files, format):
    path, said = labels_files(format)
    check_labels(plain, FORMATS[format].load(path))
    assert "largest difference" in said[0] and "2 x 101 x 77" in said[0] and said[1].startswith("Wrote '")


@pytest.mark.parametrize("name", ["DeepLabV3", "ASPP", *CHANGES])
def test_other_networks_are_traced_for_any_size(name, tmp_path):
    config = saved(config_of(name), tmp_path)
    run, _ = exported(config, tmp_path / "out.ts", "torchscript")
    check_labels(config, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeepLabV3", "ASPP", *CHANGES])
def test_other_networks_are_exported_for_any_size(name, tmp_path, monkeypatch):
    """In both formats of graphs; the graph, which takes longest, is made once."""
    config, graphs = saved(config_of(name), tmp_path), []

    def make_once(*args, **kwargs):
        if not graphs:
            graphs.append(export_program(*args, **kwargs))
        return graphs[0]

    monkeypatch.setattr("regseg_d2.apps.export.formats.export_program", make_once)
    for format in ("torch-export", "onnx"):
        path = tmp_path / f"out{FORMATS[format].suffix}"
        run, _ = exported(config, path, format, check_sizes=LARGER_SIZES)
        check_labels(config, run, LARGER_SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_mask2former_is_exported_for_one_size(format, tmp_path):
    config, size = saved(config_of("mask2former"), tmp_path), (64, 96)
    path = tmp_path / f"out{FORMATS[format].suffix}"
    run, _ = exported(config, path, format, size=size, check_sizes=())
    check_labels(config, run, sizes=[size])
    with pytest.raises(Exception):  # noqa: B017  of torch or ONNX Runtime
        run(made_up_images((1, 96, 64), seed=0))
    assert read_description(path)["input"]["shape"] == ["batch", 3, 64, 96]


@pytest.mark.parametrize(
    "format",
    ["torchscript", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torch-export", "onnx"))],
)
def test_scores_and_what_is_inside(plain, format, tmp_path):
    """Full-size scores and those of the head, with normalization left to the caller."""
    cfg = load_config(plain)
    model, images = load_trained_model(cfg).model, made_up_images((2, 50, 70), seed=3)
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    suffix = FORMATS[format].suffix
    run, _ = exported(plain, tmp_path / f"a{suffix}", format, predicts="scores")
    with torch.no_grad():
        scores = torch.stack([output["sem_seg"] for output in model([{"image": image} for image in images])])
        maps = model.feature_logits(images)
    torch.testing.assert_close(run(images), scores, rtol=1e-4, atol=1e-5)
    run, _ = exported(plain, tmp_path / f"b{suffix}", format, predicts="head-scores", normalizes=False)
    assert maps.shape == (2, 10, 4, 5)
    torch.testing.assert_close(run((images - mean) / std), maps, rtol=1e-4, atol=1e-5)
    first, second = (read_description(tmp_path / f"{name}{suffix}") for name in "ab")
    assert first["input"]["normalization"] == "inside" and first["output"]["kind"] == "scores"
    assert second["input"]["normalization"] == "by the caller" and second["output"]["kind"] == "head-scores"


def test_protocol_without_padding(tmp_path):
    cfg = small_cfg("FCN")
    cfg.TEST.PADDING = "none"
    config = saved(cfg, tmp_path)
    run, _ = exported(config, tmp_path / "out.ts", "torchscript")
    check_labels(config, run)
    assert read_description(tmp_path / "out.ts")["input"]["padding"] == "none"


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_is_read_back(plain, labels_files, format, tmp_path):
    path, _ = labels_files(format)
    description, cfg = read_description(path), load_config(plain)
    metadata = MetadataCatalog.get("cooccurrence_val")
    assert description["classes"] == list(metadata.stuff_classes) and len(description["classes"]) == 10
    assert description["palette"] == class_colors(metadata, 10).tolist()
    assert description["input"] == {
        "shape": ["batch", 3, "height", "width"],
        "dtype": "float32",
        "channels": "RGB",
        "values": "0 to 255",
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "normalization": "inside",
        "padding": "inside, to multiples of 16 x 16",
    }
    assert description["output"] == {
        "kind": "labels",
        "shape": ["batch", "height", "width"],
        "values": "class indices",
    }
    (tmp_path / "again.yaml").write_text(description["config"])
    assert load_config(str(tmp_path / "again.yaml")).MODEL == cfg.MODEL
    assert len(description["weights_sha256"]) == 64 and description["commit"]


def test_onnx_names_its_dimensions(labels_files):
    graph = onnx.load(labels_files("onnx")[0]).graph
    names = [
        [value.name, *(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)]
        for value in (*graph.input, *graph.output)
    ]
    assert names == [["images", "batch", 3, "height", "width"], ["labels", "batch", "height", "width"]]


# ---------------------------------------------------------------------------------------- what is refused


class Planted(torch.nn.Module):
    """A network that is wrong by a constant on some classes."""

    def __init__(self, network, error):
        super().__init__()
        self.network, self.error = network, error
        self.output = network.output

    def forward(self, images):
        return self.network(images) + self.error


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_a_planted_disagreement_is_refused_and_nothing_is_left(plain, format, tmp_path, monkeypatch):
    write = type(FORMATS[format]).write

    def write_another(self, network, *args, **kwargs):
        write(self, Planted(network, 0.05), *args, **kwargs)

    monkeypatch.setattr(type(FORMATS[format]), "write", write_another)
    path = tmp_path / "made" / f"out{FORMATS[format].suffix}"
    with pytest.raises(ExportError, match=r"was not written(.|\n)*1 x 64 x 96") as raised:
        exported(plain, path, format, predicts="scores")
    assert "--tolerance" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    if format == "torchscript":
        # With a tolerance that takes it, it is written: labels are the same, scores off by a constant.
        exported(plain, path, format, predicts="scores", tolerance=0.5)
        assert path.exists()


def test_labels_are_compared_by_the_scores_that_they_have():
    scores = torch.tensor([[[[1.0, 3.0]], [[2.0, 1.0]]]])  # two pixels: the labels are 1 and 0
    for labels, difference, equal in (([[1, 0]], 0.0, 1.0), ([[0, 0]], 1 / 3, 0.5), ([[1, 1]], 2 / 3, 0.5)):
        result = torch.tensor([labels], dtype=torch.uint8)
        (found,) = compare(lambda images, r=result: r, lambda images: scores, "labels", [(1, 1, 2)], "")
        assert (found.difference, found.equal) == (pytest.approx(difference), equal)
    assert not Agreement((1, 1, 1), float("nan"), 1.0).is_within(1e9)
    assert not Agreement((1, 1, 1), 0.0, 0.99).is_within(1e9)


def test_a_size_that_became_a_constant_is_refused(tmp_path):
    """Tracing keeps numbers of Mask2Former that belong to one size."""
    config = saved(config_of("mask2former"), tmp_path)
    with pytest.raises(ExportError, match="--size"):
        exported(config, tmp_path / "out.ts", "torchscript")
    assert not (tmp_path / "out.ts").exists()


def test_heads_for_one_size_are_exported_for_it(tmp_path):
    """Detectron2's DeepLab heads take multiples of the training crop, here 64 x 64."""
    config = saved(small_cfg("DeepLabV3Plus"), tmp_path)
    run, _ = exported(config, tmp_path / "out.ts", "torchscript", size=(64, 128), check_sizes=())
    check_labels(config, run, sizes=[(64, 128)])
    with pytest.raises(RuntimeError, match="expanded size"):
        run(made_up_images((1, 64, 64), seed=0))


def test_the_program_in_the_docs_reads_an_onnx_file(labels_files, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), flags=re.DOTALL)
    path, _ = labels_files("onnx")
    (tmp_path / "model.onnx").write_bytes(path.read_bytes())
    pixels = made_up_images((1, 60, 90), seed=4)
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy().astype(np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "export.md", "exec"), names)
    assert names["labels"].shape == (1, 60, 90)
    shown = [names["classes"][index] for index in np.unique(names["labels"])]
    assert capsys.readouterr().out.strip() == str(shown)
    image = torch.from_numpy(names["image"])
    assert np.array_equal(names["labels"][0], FORMATS["onnx"].load(path)(image[None])[0].numpy())


def test_another_head_is_named(tmp_path):
    class Unknown(torch.nn.Module):
        sem_seg_head = torch.nn.Linear(1, 1)

    with pytest.raises(ConfigError, match="Unknown with Linear cannot be exported"):
        ExportedNetwork(Unknown(), "labels")


def test_arguments_that_cannot_be_used(plain, tmp_path, monkeypatch):
    def request(output="out.onnx", format="onnx", **others):
        return Request(config_file=plain, output=tmp_path / output, format=format, **others)

    with pytest.raises(ConfigError, match=r"--format is 'onx' \(did you mean 'onnx'\?\)"):
        request(format="onx")
    with pytest.raises(ConfigError, match="--predicts is 'label'"):
        request(predicts="label")
    with pytest.raises(ConfigError, match=r"ends with \.pt2"):
        request(format="torch-export")
    with pytest.raises(ConfigError, match="--int8 writes ONNX"):
        request("out.ts", "torchscript", int8=True)
    with pytest.raises(ConfigError, match="--size"):
        request(size=(0, 64))
    with pytest.raises(ConfigError, match="--tolerance"):
        request(tolerance=float("nan"))
    (tmp_path / "out.onnx").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        request()
    (tmp_path / "there.int8.onnx").write_text("mine")
    with pytest.raises(ConfigError, match=r"there\.int8\.onnx' is there already"):
        request("there.onnx", int8=True)
    with pytest.raises(CheckpointError, match="no weights"):
        exported(plain, tmp_path / "new.ts", "torchscript", opts=["MODEL.WEIGHTS", ""])
    with pytest.raises(ConfigError, match="no exported file by its name"):
        read_description(tmp_path / "out.txt")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="pip install onnx onnxruntime onnxscript"):
        request("new.onnx")


def test_exit_status_of_the_tool(plain, tmp_path):
    def run(*arguments):
        tool = [sys.executable, str(ROOT / "tools" / "export.py"), "--config-file", plain]
        return subprocess.run([*tool, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)

    done = run("--format", "torchscript", "--output", tmp_path / "out.ts", "--check-sizes", "64x96,70x50")
    assert done.returncode == 0, done.stderr
    assert "TorchScript beside torch" in done.stdout and "2 x 70 x 50" in done.stdout
    again = run("--format", "torchscript", "--output", tmp_path / "out.ts")
    assert again.returncode == 2 and again.stderr.startswith("Error: '") and "Traceback" not in again.stderr


def test_latency_is_measured_beside_torch(plain, tmp_path):
    _, said = exported(plain, tmp_path / "out.ts", "torchscript", benchmark_rounds=2)
    (text,) = [line for line in said if line.startswith("Latency")]
    rows = {line.split()[0]: float(line.split()[1]) for line in text.splitlines()[3:]}
    assert set(rows) == {"torch", "TorchScript"} and min(rows.values()) > 0


def test_modules_are_not_changed(plain):
    """The reference that a file is compared with is the trained network itself."""
    cfg = load_config(plain)
    trained = load_trained_model(cfg).model
    network = ExportedNetwork(trained, "scores")
    images = made_up_images((1, 64, 96), seed=1)
    with torch.no_grad():
        expected = trained([{"image": images[0]}])[0]["sem_seg"]
        assert torch.equal(network(images)[0], expected)
        assert torch.equal(as_labels(network(images))[0], labels_of(plain, images)[0])
