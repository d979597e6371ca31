"""Every tensor of mmsegmentation's mask classifiers at their published sizes, and files that do not fit."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from regseg_d2.common.errors import CheckpointError
from regseg_d2.config.files import load_config
from regseg_d2.weights.mmseg_kinds import not_in_transformers
from regseg_d2.weights.network import NOT_NEEDED, Network
from regseg_d2.weights.published import SOURCES, convert, recognise
from tests.weights import published_helpers
from tests.weights.mask_classifier_names import network
from tests.weights.published_helpers import MMSEG_FCN, load_directly, options, save
from tests.weights.test_mmseg_transformers import CASES, load_fixture

ROOT = Path(__file__).parents[2]
#: Rows of the table of docs/weights.md: networks, MODEL_TYPE and CONFIG.
ROW = re.compile(r"\| `((?:mask2former|maskformer)_.*?)` \| `(\w+)` \| (?:`(.*)`)? ?\|")


def documented():
    """By mmsegmentation's name, the MODEL_TYPE and CONFIG that the docs give."""
    rows = ROW.findall((ROOT / "docs" / "weights.md").read_text())
    return {name: (model_type, config) for name, model_type, config in rows}


DOCUMENTED = documented()


def test_the_docs_have_all_networks():
    swins = ("swin-t", "swin-s")
    names = {f"mask2former_{name}" for name in ("r50", "r101", *swins, "swin-b", "swin-l")}
    assert set(DOCUMENTED) == names | {f"maskformer_{name}" for name in ("r50", "r101", *swins)}


def build(name):
    """The network here, as the docs have it."""
    model_type, config = DOCUMENTED[name]
    leaf = ROOT / "configs" / "hf" / f"ade20k_{model_type}.yaml"
    keys = {"NAME": "", "MODEL_TYPE": model_type, **({"CONFIG": config} if config else {})}
    opts = [part for key, value in keys.items() for part in (f"MODEL.HUGGINGFACE.{key}", value)]
    cfg = load_config(str(leaf), [*opts, "MODEL.DEVICE", "meta", "MODEL.REGULARIZERS.NAMES", "[]"])
    with torch.device("meta"):
        return Network.of(cfg, build_model(cfg))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_tensor_of_the_published_sizes_has_its_place(name):
    here = build(name)
    state = {key: torch.empty(shape, device="meta") for key, shape in network(name).items()}
    assert recognise(state, here) is SOURCES["mmseg"]
    conversion = convert(state, SOURCES["mmseg"], here, "theirs.pth", whole=True)
    assert conversion.misfits == conversion.dropped == {}
    assert conversion.report.new == ()
    assert conversion.warning == ""
    assert {key for key in here.shapes if not key.endswith(NOT_NEEDED)} <= set(conversion.weights)
    ours = sum(value.numel() for key, value in conversion.weights.items() if not key.endswith(NOT_NEEDED))
    assert ours == sum(value.numel() for key, value in state.items() if not key.endswith(NOT_NEEDED))
    # The converted file is one of this package's own.
    assert recognise(conversion.weights, here) is None


#: Names of transformers 5.24, and what they were in 5.0.
OLDER = [
    (r"\.encoder\.swin\.", ".encoder."),
    (r"(blocks\.\d+)\.attention\.o_proj", r"\1.attention.output.dense"),
    (r"(blocks\.\d+)\.attention\.relative_position_bias\.", r"\1.attention.self."),
    *[
        (rf"(blocks\.\d+)\.attention\.{p[0]}_proj", rf"\1.attention.self.{p}")
        for p in ("query", "key", "value")
    ],
    (r"(blocks\.\d+)\.mlp\.fc1", r"\1.intermediate.dense"),
    (r"(blocks\.\d+)\.mlp\.fc2", r"\1.output.dense"),
    (r"(layers\.\d+)\.mlp\.", r"\1."),
    (r"_attn\.o_proj", "_attn.out_proj"),
]


@pytest.mark.parametrize("name", ["mask2former_swin-t", "maskformer_swin-t"])
def test_names_of_older_releases_of_transformers(name):
    state = {key: torch.empty(shape, device="meta") for key, shape in network(name).items()}
    here = build(name)
    newer = convert(state, SOURCES["mmseg"], here, "theirs.pth", whole=True).weights
    renamed = {key: older(key) for key in here.shapes}
    assert sum(old != new for new, old in renamed.items()) > 40
    shapes = {renamed[key]: shape for key, shape in here.shapes.items()}
    old = Network(here.cfg, shapes, here.model_type, here.model_backbone)
    conversion = convert(state, SOURCES["mmseg"], old, "theirs.pth", whole=True)
    assert set(conversion.weights) == {renamed[key] for key in newer}
    assert conversion.misfits == conversion.dropped == {}


def older(name):
    for new, old in OLDER:
        name = re.sub(new, old, name)
    return name


# ------------------------------------------------------------------------------------- what does not fit


@pytest.fixture
def run_tool(tmp_path, monkeypatch, capsys):
    """Runs the tool on a state; its exit status, what it printed, and whether it wrote a file."""

    def run(state, keys):
        theirs, out = save(state, tmp_path / "theirs.pth"), tmp_path / "ours.pth"
        arguments = ["--from", "mmseg", theirs, out, *options(keys)]
        status, printed = published_helpers.run_tool(arguments, monkeypatch, capsys)
        return status, " ".join(printed.split()), out.exists()

    return run


def without(name, *beginnings):
    state = load_fixture(name)["state"]
    left = {key: value for key, value in state.items() if not key.startswith(beginnings)}
    assert len(left) < len(state)
    return left


ENCODER = "network.model.pixel_level_module.encoder"

HALF = {
    "a norm of the queries": (
        "mask2former_swin",
        "decode_head.transformer_decoder.layers.2.norms.2.",
        r"network.model.transformer_module: 75 of 77 tensors are from the file; new: network.model.transf",
    ),
    "attention of the pixels": (
        "mask2former_swin",
        "decode_head.pixel_decoder.encoder.layers.1.self_attn.sampling_offsets",
        r"network.model.pixel_level_module.decoder: 5\d of 5\d tensors are from the file; new: ",
    ),
    "queries, keys and values": (
        "maskformer_resnet",
        "decode_head.transformer_decoder.layers.1.cross_attn.attn.in_proj_weight",
        r"new: network.model.transformer_module.decoder.layers.1.encoder_attn.[qkv]_proj.weight, ",
    ),
    "a block of a Swin": (
        "mask2former_swin",
        "backbone.stages.1.blocks.0.attn.w_msa.qkv.weight",
        rf"{ENCODER}.swin.encoder.layers.1: \d+ of \d+ tensors are from the file; new: {ENCODER}.swin",
    ),
    "a norm of a ResNet": (
        "maskformer_resnet",
        "backbone.layer3.0.bn1.",
        rf"{ENCODER}.encoder.stages.2: \d+ of \d+ tensors are from the file; new: {ENCODER}.encoder.st",
    ),
}


@pytest.mark.parametrize("case", HALF)
def test_a_part_that_came_by_half_is_an_error_everywhere(case, run_tool, tmp_path):
    name, left_out, message = HALF[case]
    status, printed, written = run_tool(without(name, left_out), CASES[name])
    assert (status, written) == (2, False)
    with pytest.raises(CheckpointError, match=message) as error:
        load_directly(CASES[name], tmp_path / "theirs.pth")
    assert " ".join(str(error.value).split()) in printed


def test_another_family_or_width_is_an_error(run_tool):
    state = load_fixture("maskformer_resnet")["state"]
    keys = CASES["maskformer_resnet"]
    mask2former = {
        **CASES["mask2former_swin"],
        "MODEL.HUGGINGFACE.CONFIG": {
            **CASES["mask2former_swin"]["MODEL.HUGGINGFACE.CONFIG"],
            "backbone_config": keys["MODEL.HUGGINGFACE.CONFIG"]["backbone_config"],
        },
    }
    status, printed, written = run_tool(state, mask2former)
    assert (status, written) == (2, False)
    assert (
        "which here is MODEL.META_ARCHITECTURE: HuggingFaceSegmentor with MODEL.HUGGINGFACE.MODEL_TYPE: "
        in printed
    )
    assert "MODEL_TYPE: maskformer" in printed
    status, printed, _ = run_tool(state, CASES["mask2former_swin"])
    assert status == 2
    assert "has 0% of the backbone's" in printed
    assert "Is it a checkpoint of this backbone (MODEL.HUGGINGFACE and its CONFIG)?" in printed


def test_a_network_of_stages_says_what_it_is_here(run_tool):
    state = {
        **{k: v for k, v in torch.load(FCN, weights_only=True)["state"].items() if k.startswith("backbone.")},
        "decode_head.query_feat.weight": torch.zeros(2, 2),
    }
    status, printed, _ = run_tool(state, MMSEG_FCN)
    assert status == 0
    assert "Mask2FormerHead, which here is MODEL.META_ARCHITECTURE: HuggingFaceSegmentor with" in printed


FCN = Path(__file__).parent / "fixtures" / "fcn_resnet50_thin.pt"


@pytest.mark.parametrize(
    ("added", "kind"),
    [
        ("panoptic_head.query_feat.weight", "mmdetection's panoptic_head"),
        (
            "decode_head.pixel_decoder.encoder_in_proj.weight",
            "MaskFormerHead with its TransformerEncoderPixelDec",
        ),
        (
            "decode_head.transformer_decoder.layers.0.attentions.0.attn.in_proj_bias",
            "of its release candidates",
        ),
        ("backbone.stem.0.weight", "mmsegmentation's ResNetV1c or ResNetV1d"),
        ("backbone.layer1.0.conv2.fc1.weight", "mmsegmentation's ResNeSt"),
        ("backbone.transition1.0.0.weight", "mmsegmentation's HRNet"),
        ("backbone.layers.0.0.projection.weight", "mmsegmentation's MixVisionTransformer"),
        ("backbone.layers.0.ln1.weight", "mmsegmentation's VisionTransformer"),
        ("backbone.downsample_layers.0.0.weight", "mmsegmentation's ConvNeXt"),
        ("backbone.absolute_pos_embed", "mmsegmentation's SwinTransformer with use_abs_pos_embed"),
    ],
)
def test_what_transformers_does_not_have_is_named(added, kind, run_tool):
    state = {**load_fixture("maskformer_resnet")["state"], added: torch.zeros(2)}
    status, printed, written = run_tool(state, CASES["maskformer_resnet"])
    assert (status, written) == (2, False)
    assert "theirs.pth': not supported: this is " in printed
    assert kind in printed


def test_what_transformers_has_is_not_refused():
    for name in DOCUMENTED:
        assert not_in_transformers(network(name)) == ""
