"""Static int8: a smaller file that is calibrated on images, and evaluated beside the float one."""

import onnx
import pytest
import torch
from torch import nn

from regseg_d2.apps.export.agreement import made_up_images
from regseg_d2.apps.export.description import read_description
from regseg_d2.apps.export.exporting import Request, export_network
from regseg_d2.apps.export.formats import FORMATS
from regseg_d2.apps.export.network import ExportedNetwork
from regseg_d2.apps.export.quantization import FileSegmentor, calibration_images, mean_ious, quantize
from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.engine.trained_model import load_trained_model
from tests.apps.export.test_export import saved
from tests.helpers import small_cfg


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    config = saved(small_cfg("FCN"), folder)
    said = []
    request = Request(
        config_file=config,
        output=folder / "out.onnx",
        format="onnx",
        check_sizes=((64, 96), (70, 50)),
        int8=True,
        calibration_images=4,
        benchmark_rounds=1,
    )
    export_network(request, say=said.append)
    return config, folder, said


def test_int8_is_smaller_and_its_miou_stands_beside_the_float_one(quantized):
    config, folder, said = quantized
    sizes = {name: (folder / name).stat().st_size for name in ("out.onnx", "out.int8.onnx")}
    assert sizes["out.int8.onnx"] < 0.35 * sizes["out.onnx"]
    operations = {node.op_type for node in onnx.load(folder / "out.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv", "ArgMax"} <= operations
    (heading,) = [
        text for text in said if text.startswith("int8, calibrated on 4 images of cooccurrence_val")
    ]
    assert "equal labels" in heading
    (scores,) = [text for text in said if "mIoU cooccurrence_val" in text]
    rows = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in scores.splitlines()[2:]}
    assert rows["int8"][0] < rows["float32"][0]
    cfg = load_config(config)
    model = load_trained_model(cfg).model
    assert rows["float32"][1] == pytest.approx(mean_ious(cfg, model)["cooccurrence_val"], abs=0.02)
    run = FORMATS["onnx"].load(folder / "out.int8.onnx")
    again = mean_ious(cfg, FileSegmentor(run, ExportedNetwork(model, "labels"), 10))
    assert rows["int8"][1] == pytest.approx(again["cooccurrence_val"], abs=0.01)
    assert {"torch", "ONNX", "int8"} <= {line.split()[0] for line in said[-2].splitlines() if line}


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.ReLU()])
def test_what_an_activation_cuts_off_costs_no_levels(activation, tmp_path):
    """Values go from -1000 to 6, and the activation leaves 0 to 6 of them: less than two levels of int8."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), activation, nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():
        network[0].weight.fill_(4.0)
        network[0].bias.fill_(6.0 - 4 * 255)
    network.output = "scores"
    images = [made_up_images((1, 64, 96), seed=seed) for seed in range(3)]
    images[0][..., :2, :] = 255.0  # the largest value is there
    onnx_format = FORMATS["onnx"]
    onnx_format.write(network, images[0].repeat(2, 1, 1, 1), tmp_path / "a.onnx", "{}", any_size=True)
    quantize(tmp_path / "a.onnx", tmp_path / "b.onnx", images, "{}")
    with torch.no_grad():
        expected = network(images[0])
    error = (onnx_format.load(tmp_path / "b.onnx")(images[0]) - expected).abs().max()
    assert error < 0.02 * (expected.max() - expected.min())


def test_int8_takes_any_size_and_says_what_it_is(quantized):
    _, folder, _ = quantized
    run = FORMATS["onnx"].load(folder / "out.int8.onnx")
    for shape in [(1, 64, 96), (3, 101, 77)]:
        assert run(made_up_images(shape, seed=0)).shape == shape
    description = read_description(folder / "out.int8.onnx")
    assert description == read_description(folder / "out.onnx")


def test_calibration_images_are_spread_over_the_data_set(quantized):
    cfg = load_config(quantized[0])
    network = ExportedNetwork(load_trained_model(cfg).model, "labels")
    three, one = (calibration_images(cfg, "cooccurrence_val", count, network) for count in (3, 1))
    assert len(three) == 3 and torch.equal(one[0], three[0])
    assert three[0].dtype == torch.float32 and three[0].max() > 1
    assert not torch.equal(three[0], three[1]) and not torch.equal(three[1], three[2])
    network.size = (48, 40)
    assert calibration_images(cfg, "cooccurrence_val", 1, network)[0].shape == (1, 3, 48, 40)


def test_data_sets_are_needed(quantized, tmp_path):
    for opts, message in (
        (["DATASETS.TEST", "[]"], "DATASETS.TEST is empty"),
        (["DATASETS.TRAIN", "[]"], "--calibration-set"),
    ):
        request = Request(
            config_file=quantized[0], output=tmp_path / "out.onnx", format="onnx", opts=opts, int8=True
        )
        with pytest.raises(ConfigError, match=message):
            export_network(request)
    assert list(tmp_path.iterdir()) == []
