"""mmsegmentation's Mask2Former and MaskFormer in transformers' networks: the same classes and masks.

The fixtures hold thin networks of mmsegmentation 1.2.2 and mmdet 3.3.0 with random weights, images of an odd
size, and the logits of classes and masks that they make of them.
"""

import math

import pytest
import torch

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.mmseg_transformers import thirds
from regseg_d2.weights.network import NOT_NEEDED
from tests.weights.published_helpers import (
    FIXTURES,
    assert_same_weights,
    check_both_ways,
    load_converted,
    load_directly,
    save,
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {
    "model_type": "swin",
    "embed_dim": 4,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 1, 2, 4],
    "window_size": 4,
    "out_features": STAGES,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 32, 64],
    "depths": [3, 4, 6, 3],
    "out_features": STAGES,
}
MASK2FORMER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "num_queries": 6,
}
MASKFORMER = {
    "fpn_feature_size": 32,
    "mask_feature_size": 32,
    "decoder_config": {
        "model_type": "detr",
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_ffn_dim": 16,
        "decoder_attention_heads": 4,
        "encoder_attention_heads": 4,
        "num_queries": 6,
    },
}


def keys_of(model_type, backbone, **changes):
    sizes = {"mask2former": MASK2FORMER, "maskformer": MASKFORMER}[model_type]
    return {
        "MODEL.DEVICE": "cpu",
        "MODEL.META_ARCHITECTURE": "HuggingFaceSegmentor",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.HUGGINGFACE.MODEL_TYPE": model_type,
        "MODEL.HUGGINGFACE.CONFIG": {**sizes, "backbone_config": backbone, **changes},
    }


#: The config here of each fixture.
CASES = {
    "mask2former_swin": keys_of("mask2former", SWIN),
    "maskformer_resnet": keys_of("maskformer", RESNET),
}


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def load_fixture(name):
    fixture = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    state = {key: value.float() for key, value in fixture["state"].items()}
    return {**fixture, "state": state, "image": fixture["image"].float()}


def published(name, tmp_path):
    """The fixture, and a file as mmsegmentation publishes it."""
    fixture = load_fixture(name)
    return fixture, save({"meta": {}, "state_dict": fixture["state"]}, tmp_path / "theirs.pth")


@torch.no_grad()
def queries_of(model, image):
    output = model.network(image)
    return output.class_queries_logits, output.masks_queries_logits


def test_classes_and_masks_are_mmsegmentations(name, tmp_path):
    fixture, path = published(name, tmp_path)
    model, text = check_both_ways(CASES[name], path, "mmseg", tmp_path)
    classes, masks = queries_of(model, fixture["image"])
    for found, expected in ((classes, fixture["classes"]), (masks, fixture["masks"])):
        assert expected.std() > 0.1
        assert (expected[0] - expected[1]).abs().max() > 0.1  # the images differ
        assert (expected[0, 0] - expected[0, 1]).abs().max() > 0.1  # and the queries
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["used"][1] > "0"
    assert lines["new (in the network only)"][5] == lines["dropped (in the file only)"][5] == "0"
    assert "Backbone: 100.0% of " in text
    assert "Warning" not in text


@pytest.mark.parametrize("stretches", [True, False])
def test_scores_are_sums_over_queries_without_no_object(stretches, tmp_path):
    name = "mask2former_swin" if stretches else "maskformer_resnet"
    fixture, path = published(name, tmp_path)
    model = load_directly(CASES[name], path, strict=True)
    image = fixture["image"] * model.pixel_std + model.pixel_mean
    with torch.no_grad():
        scores = model.feature_logits(image, pad=False)
    classes, masks = fixture["classes"].double(), fixture["masks"].double()
    if stretches:
        masks = torch.nn.functional.interpolate(masks, image.shape[-2:], mode="bilinear", align_corners=False)
    batch, queries, kinds = classes.shape
    expected = torch.zeros(batch, kinds - 1, *masks.shape[-2:], dtype=torch.float64)
    for n in range(batch):
        for q in range(queries):
            exponentials = [math.exp(value) for value in classes[n, q].tolist()]
            for k in range(kinds - 1):
                expected[n, k] += exponentials[k] / sum(exponentials) / (1 + torch.exp(-masks[n, q]))
    assert expected.std() > 0.01
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["mask2former", "maskformer"])
def test_features_of_both_swins_are_mmsegmentations(model_type, tmp_path):
    fixture = load_fixture("swin_thin")
    backbone = {**SWIN, "depths": [2, 2, 2, 2], "mlp_ratio": 2.0}
    path = save(fixture["state"], tmp_path / "swin.pth")
    model, text = load_converted(keys_of(model_type, backbone), path, "mmseg", tmp_path)
    assert "Head: none of it is from the file." in text
    encoder = model.network.model.pixel_level_module.encoder
    with torch.no_grad():
        features = encoder(fixture["image"]).feature_maps
        for found, expected in zip(features, fixture["features"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        # Merging reads four pixels as one: their order matters.
        norm = next(m.downsample.norm for m in encoder.modules() if getattr(m, "downsample", None))
        norm.weight.copy_(fixture["state"]["backbone.stages.0.downsample.norm.weight"])
        assert (encoder(fixture["image"]).feature_maps[1] - fixture["features"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("name_", ["attn.in_proj", "w_msa.qkv."])
def test_thirds_attend_as_the_whole(name_):
    width, heads, positions = 8, 2, 5
    whole = torch.nn.MultiheadAttention(width, heads, dtype=torch.float64)
    torch.nn.init.normal_(whole.in_proj_bias)
    joiner = name_ if name_.endswith(".") else f"{name_}_"
    weights = thirds(f"{joiner}weight", whole.in_proj_weight.detach())
    biases = thirds(f"{joiner}bias", whole.in_proj_bias.detach())
    prefix = name_.partition(".")[0]
    assert list(weights) == [f"{prefix}.{part}.weight" for part in ("query", "key", "value")]
    inputs = torch.randn(3, positions, width, dtype=torch.float64)
    q, k, v = (x @ w.T + b for x, w, b in zip(inputs, weights.values(), biases.values(), strict=True))
    mixed = torch.zeros(positions, width, dtype=torch.float64)
    size = width // heads
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        for i in range(positions):
            similar = [
                math.exp(float(q[i, channels] @ k[j, channels]) / math.sqrt(size)) for j in range(positions)
            ]
            for j in range(positions):
                mixed[i, channels] += similar[j] / sum(similar) * v[j, channels]
    expected, _ = whole(*inputs)
    torch.testing.assert_close(mixed @ whole.out_proj.weight.T + whole.out_proj.bias, expected)


def test_other_names_have_no_thirds():
    assert thirds("attn.out_proj.weight", torch.zeros(6, 2)) == {}
    assert thirds("attn.qkv.weight.scale", torch.zeros(6)) == {}


@pytest.mark.parametrize("backbone", [SWIN, RESNET])
@pytest.mark.parametrize("model_type", ["mask2former", "maskformer"])
def test_what_a_checkpoint_need_not_have_is_not_read(model_type, backbone):
    model = load_network(keys_of(model_type, backbone))
    image = torch.randn(1, 3, 64, 64)
    before = queries_of(model, image)
    unread = [
        n for n in model.state_dict() if n.endswith(NOT_NEEDED) and not n.endswith(("tracked", "index"))
    ]
    assert "network.criterion.empty_weight" in unread
    assert len(unread) == (3 if backbone is SWIN else 1)
    for key in unread:
        model.state_dict()[key].fill_(math.nan)
    for found, expected in zip(queries_of(model, image), before, strict=True):
        assert torch.equal(found, expected)


def load_network(keys):
    from detectron2.modeling import build_model

    from tests.weights.published_helpers import make_cfg

    torch.manual_seed(0)
    return build_model(make_cfg(keys)).eval()


def test_a_head_for_other_classes_keeps_all_but_the_classifier(name, tmp_path):
    _, path = published(name, tmp_path)
    keys = {**CASES[name], "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3}
    model, text = load_converted(keys, path, "mmseg", tmp_path)
    assert_same_weights(model, load_directly(keys, path))
    assert (
        "network.class_predictor.bias: (6,) in the file, (4,) in the network: a classifier of other" in text
    )
    whole = load_directly(CASES[name], path).state_dict()
    for key, value in model.state_dict().items():
        is_of_classes = key.startswith(("network.class_predictor", "network.criterion"))
        assert is_of_classes or key.endswith(NOT_NEEDED) or torch.equal(value, whole[key]), key
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*class_predictor.bias: \(6,\)"):
        load_directly(keys, path, strict=True)


def test_the_backbone_alone(name, tmp_path):
    from regseg_d2.apps.convert_weights import convert_file
    from tests.weights.published_helpers import options

    _, path = published(name, tmp_path)
    out = tmp_path / "ours.pth"
    text = convert_file(str(path), str(out), source="mmseg", opts=options(CASES[name]), backbone_only=True)
    assert "Head: none of it is from the file." in text
    saved = torch.load(out, weights_only=True)["model"]
    assert len(saved) > 50
    assert all(key.startswith("network.model.pixel_level_module.encoder.") for key in saved)
