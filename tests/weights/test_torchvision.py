"""Checkpoints of torchvision: ResNets, FCN and DeepLabV3."""

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead

from regseg_d2.apps.convert_weights import convert_file
from regseg_d2.common.errors import CheckpointError
from regseg_d2.config.files import load_config
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.segmentor.build import build_model
from tests.weights.published_helpers import (
    HEAD,
    IMAGE,
    PLAIN_FCN,
    TIMM,
    TORCHVISION,
    check_both_ways,
    load_converted,
    load_directly,
    logits_of,
    options,
    randomize,
    save,
)


class ThinResNet(ResNet):
    """torchvision's ResNet-50 at stride 8, with an eighth of the channels behind the stem."""

    def __init__(self):
        super().__init__(
            Bottleneck, [3, 4, 6, 3], num_classes=10, replace_stride_with_dilation=[False, True, True]
        )

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 8, *arguments, **options)


@pytest.mark.parametrize("kind", ["fcn", "deeplabv3"])
def test_torchvisions_segmentation(kind, tmp_path):
    backbone = IntermediateLayerGetter(ThinResNet(), {"layer4": "out", "layer3": "aux"})
    head = FCNHead(256, 7) if kind == "fcn" else DeepLabHead(256, 7, [2, 3, 4])
    theirs = randomize((FCN if kind == "fcn" else DeepLabV3)(backbone, head, FCNHead(128, 7)))
    path = save(theirs.state_dict(), tmp_path / "theirs.pth")
    fcn = {f"{HEAD}CONTEXT": "FCN", f"{HEAD}CONTEXT_CHANNELS": 64, f"{HEAD}CONVS_DIM": 64}
    forms = {
        "fcn": [
            {**fcn, f"{HEAD}FCN_NUM_CONVS": 0},
            {**fcn, f"{HEAD}PROJECTION": ""},
        ],
        "deeplabv3": [
            {f"{HEAD}CONTEXT": "ASPP", f"{HEAD}ASPP_DILATIONS": [2, 3, 4], f"{HEAD}CONVS_DIM": 256}
        ],
    }
    for form in forms[kind]:
        model, text = check_both_ways({**TORCHVISION, **form}, path, "torchvision", tmp_path)
        with torch.no_grad():
            features = theirs.backbone(IMAGE)
            expected = theirs.classifier(features["out"])
            coarse = theirs.aux_classifier(features["aux"])
            ours = model.sem_seg_head.auxiliary(model.backbone(IMAGE)["res4"])
        scale = expected.abs().max()
        assert scale > 0.1
        assert (logits_of(model, IMAGE) - expected).abs().max() <= 1e-5 * max(scale, 1)
        assert (ours - coarse).abs().max() <= 1e-5 * max(coarse.abs().max(), 1)
        assert "RGB" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fcn_resnet50", "deeplabv3_resnet50", "fcn_resnet101", "deeplabv3_resnet101"]
)
def test_each_whole_network_has_a_config(name, tmp_path):
    theirs = getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, aux_loss=True
    )
    path = save(randomize(theirs.eval()).state_dict(), tmp_path / "theirs.pth")
    cfg = load_config(f"configs/_base_/models/torchvision_{name}.yaml")
    weights = f"torchvision:{name}.COCO_WITH_VOC_LABELS_V1"
    assert weights == cfg.MODEL.WEIGHTS
    cfg.merge_from_list(
        ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 21, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(path)]
    )
    model = build_model(cfg).eval()
    SafeCheckpointer(model, cfg=cfg).load_for_evaluation(str(path))
    image = torch.randint(0, 256, (1, 3, 65, 97)).float()
    with torch.no_grad():
        mean, std = torch.tensor(cfg.MODEL.PIXEL_MEAN), torch.tensor(cfg.MODEL.PIXEL_STD)
        features = theirs.backbone((image - mean[:, None, None]) / std[:, None, None])
        expected = theirs.classifier(features["out"])
        found = model.feature_logits(image, pad=False)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_torchvisions_imagenet_weights_in_both_kinds_of_backbone(tmp_path):
    theirs = randomize(ThinResNet())
    path = save(theirs.state_dict(), tmp_path / "theirs.pth")
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(IMAGE))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    by_timm = {
        **TIMM,
        **PLAIN_FCN,
        "MODEL.TIMM.NAME": "resnet50",
        "MODEL.TIMM.OUTPUT_STRIDE": 8,
        "MODEL.TIMM.OPTIONS": "{channels: [8, 16, 32, 64]}",
    }
    for keys in ({**TORCHVISION, **PLAIN_FCN}, by_timm):
        model, text = load_converted(keys, path, "torchvision", tmp_path)
        assert "fc: weight (10, 2048), bias (10,)" in text
        assert "Backbone: 100.0%" in text
        with torch.no_grad():
            found = model.backbone(IMAGE)["res5"]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        directly = load_directly(keys, path)
        assert torch.equal(directly.backbone(IMAGE)["res5"], found)


def test_a_stem_of_another_kind_is_left_new_in_a_training_and_an_error_of_the_tool(tmp_path):
    theirs = ThinResNet()
    path = save(theirs.state_dict(), tmp_path / "theirs.pth")
    keys = {**TORCHVISION, **PLAIN_FCN, "MODEL.RESNETS.STEM_TYPE": "deeplab"}
    model = load_directly(keys, path)
    assert torch.equal(model.backbone.res2[0].conv1.weight, theirs.layer1[0].conv1.weight)
    with pytest.raises(
        CheckpointError, match=r"backbone.stem: 0 of 15 tensors .*\n.*MODEL.RESNETS.STEM_TYPE"
    ):
        convert_file(str(path), str(tmp_path / "out.pth"), source="torchvision", opts=options(keys))
    assert not (tmp_path / "out.pth").exists()
    with pytest.raises(CheckpointError, match="This is a ResNet of torchvision.*'build_mit_backbone'"):
        load_directly({**keys, "MODEL.BACKBONE.NAME": "build_mit_backbone"}, path)
