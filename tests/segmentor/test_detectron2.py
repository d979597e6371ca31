"""What Detectron2 itself does with the keys and the mixin: its trainer, its other meta-architectures."""

import numpy as np
import pytest
import torch
from detectron2.config import configurable, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    SemanticSegmentor,
    build_backbone,
    build_model,
    build_sem_seg_head,
)
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.config import add_regseg_config
from regseg_d2.config.keys import flatten_config
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.modeling.process_batch_norm import ProcessBatchNorm2d
from regseg_d2.segmentor import RegularizationMixin
from tests.helpers import small_batch, small_cfg


@pytest.mark.parametrize("deeplab", [True, False])
def test_adding_keys_changes_none_of_detectron2s(deeplab):
    cfg = get_cfg()
    if deeplab:
        add_deeplab_config(cfg)
    before = flatten_config(cfg.clone())
    add_regseg_config(cfg)
    after = flatten_config(cfg)
    assert len(after) > len(before) + 100
    assert {key: after[key] for key in before} == before


@pytest.fixture
def dataset(tmp_path):
    records = []
    for number in range(4):
        generator = np.random.default_rng(number)
        labels = generator.integers(0, 3, (4, 4)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        image = (80 * labels[..., None] + generator.integers(0, 60, (64, 64, 3))).astype(np.uint8)
        names = [str(tmp_path / f"{kind}_{number}.png") for kind in ("image", "label")]
        for name, array in zip(names, (image, labels), strict=True):
            Image.fromarray(array).save(name)
        files = dict(zip(("file_name", "sem_seg_file_name"), names, strict=True))
        records.append({**files, "height": 64, "width": 64, "image_id": number})
    DatasetCatalog.register("detectron2_toy", lambda: records)
    MetadataCatalog.get("detectron2_toy").set(stuff_classes=["a", "b", "c"], ignore_label=255)
    return "detectron2_toy"


def thin(cfg):
    """A narrow ResNet without weights on the CPU; its norm is what the mixin says."""
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.NORM = "cpu", "", "auto"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.STEM_TYPE = 4, "basic"


def test_detectron2s_own_trainer_trains_with_regularizers(dataset, tmp_path):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_regseg_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RegularizedSegmentor"
    cfg.MODEL.REGULARIZERS.NAMES = ["CAR", "PNE"]
    cfg.MODEL.REGULARIZERS.DIAGNOSTICS_PERIOD = 1
    thin(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES, head.IN_FEATURES, head.COMMON_STRIDE, head.CONVS_DIM = 3, ["res3", "res4"], 8, 32
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (dataset,), ()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.DATALOADER.NUM_WORKERS = (64,), 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 3
    trainer = DefaultTrainer(cfg)
    assert isinstance(trainer.model.backbone.res4[0].conv1.norm, nn.BatchNorm2d)
    before = trainer.model.backbone.res4[0].conv1.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.backbone.res4[0].conv1.weight)
    assert trainer.model.regularizers["CAR"].num_forwards == 3
    latest = trainer.storage.latest()
    assert {"loss_car_intra_c2p", "loss_pne_contrast", "loss_sem_seg", "car/classes"} <= set(latest)


@META_ARCH_REGISTRY.register()
class OtherSegmentor(SemanticSegmentor):
    """Stands for a meta-architecture of a third party."""


@META_ARCH_REGISTRY.register()
class RegularizedOtherSegmentor(RegularizationMixin, OtherSegmentor):
    """All that is needed to regularize it."""


@META_ARCH_REGISTRY.register()
class DecoderSegmentor(nn.Module):
    """Calls its head by another name, and tells it no labels."""

    @configurable
    def __init__(self, *, backbone, decoder, mean, std):
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (mean, std))

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        decoder = nn.ModuleDict({"head": build_sem_seg_head(cfg, backbone.output_shape())})
        parts = {"backbone": backbone, "decoder": decoder}
        return {**parts, "mean": cfg.MODEL.PIXEL_MEAN, "std": cfg.MODEL.PIXEL_STD}

    def forward(self, batched_inputs):
        images = [(sample["image"] - self.mean) / self.std for sample in batched_inputs]
        images = ImageList.from_tensors(images, self.backbone.size_divisibility)
        logits, _ = self.decoder["head"].layers(self.backbone(images.tensor))
        return {"loss_square": logits.square().mean()} if self.training else [{"sem_seg": x} for x in logits]


@META_ARCH_REGISTRY.register()
class RegularizedDecoderSegmentor(RegularizationMixin, DecoderSegmentor):
    main_classifier = "decoder.head.predictor"


@pytest.fixture(scope="module", autouse=True)
def _registry_stays():
    yield
    for name in [name for name, kind in META_ARCH_REGISTRY if kind.__module__ == __name__]:
        del META_ARCH_REGISTRY._obj_map[name]


@pytest.mark.parametrize("norm", ["auto", "naiveSyncBN"])
def test_another_meta_architecture_is_regularized_by_the_mixin_alone(norm, monkeypatch):
    cfg = small_cfg("FCN", ["CAR", "RCH"], META_ARCHITECTURE="RegularizedOtherSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.NORM = "auto"
    if norm == "naiveSyncBN":
        # As on several processes.
        monkeypatch.setattr("regseg_d2.modeling.norms.auto_norm", lambda device, world_size: norm)
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = model(small_batch())
    assert losses["loss_car_intra_c2p"] > 0
    assert "loss_rch_metric" in losses
    exact = [module for module in model.modules() if isinstance(module, ProcessBatchNorm2d)]
    assert bool(exact) == (norm == "naiveSyncBN")
    torch.manual_seed(0)
    cfg.MODEL.META_ARCHITECTURE = "RegularizedSegmentor"
    expected = build_model(cfg)(small_batch())
    assert all(torch.equal(losses[key], expected[key]) for key in expected)


def build_decoder_segmentor(names, **overrides):
    torch.manual_seed(0)
    return build_model(small_cfg("FCN", names, META_ARCHITECTURE="RegularizedDecoderSegmentor", **overrides))


def test_a_head_of_another_name_that_is_told_no_labels():
    """Losses are those of the same network as Detectron2 calls its parts; images are padded."""
    methods = ["CAR", "PNE", "RCH"]
    model = build_decoder_segmentor(methods)
    assert model.regularizers["PNE"].taps == ("decoder.head.dropout:in", "decoder.head.predictor:out")
    batch = [*small_batch(1, size=(61, 50)), *small_batch(1, size=(48, 64), seed=1)]
    torch.manual_seed(1)
    losses = model(batch)
    torch.manual_seed(0)
    expected = build_model(small_cfg("FCN", methods))
    torch.manual_seed(1)
    expected = expected(batch)
    assert losses.keys() == expected.keys() - {"loss_sem_seg"} | {"loss_square"}
    assert all(torch.equal(losses[key], expected[key]) for key in expected.keys() - {"loss_sem_seg"})
    assert losses["loss_car_intra_c2p"] > 0
    sum(losses.values()).backward()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not model.gives_feature_logits
    plain = DecoderSegmentor(resolve_auto_norm(small_cfg("FCN"))).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("regularizers.")}
    plain.load_state_dict(state)
    model.eval()
    for ours, theirs in zip(model(batch), plain(batch), strict=True):
        assert torch.equal(ours["sem_seg"], theirs["sem_seg"])


def test_the_config_names_another_classifier_than_the_class_does():
    classifier = "decoder.head.auxiliary.predictor"
    keys = {"SEM_SEG_HEAD__AUX__IN_FEATURE": "res3", "REGULARIZERS__CAR__CLASSIFIER": classifier}
    model = build_decoder_segmentor(["CAR"], **keys)
    assert model.regularizers["CAR"].feature_tap == "decoder.head.auxiliary.dropout:in"
    with pytest.raises(ConfigError, match="near names are .*'decoder.head.predictor'"):
        build_decoder_segmentor(["CAR"], REGULARIZERS__CAR__CLASSIFIER="decoder.predictor")


def test_labels_that_do_not_belong_to_the_images():
    model, batch = build_decoder_segmentor(["CAR"]), small_batch()
    for sample in batch:
        sample["sem_seg"] = sample["sem_seg"].repeat(2, 1)
    with pytest.raises(UserError, match=r"labels of the size \(128, 64\) .* at the size \(64, 64\)"):
        model(batch)
    del batch[1]["sem_seg"], batch[0]["sem_seg"]
    with pytest.raises(UserError, match=r"has \['file_name', 'image'\]; .*: 'sem_seg', or 'instances' with"):
        model(batch)


def test_the_panoptic_network_of_detectron2():
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_regseg_config(cfg)
    thin(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RegularizedPanopticFPN"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.MASK_ON = "build_resnet_fpn_backbone", True
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.REGULARIZERS.NAMES = ["CAR"]
    model = build_model(cfg)
    batch = small_batch()
    for sample in batch:
        masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        masks[:, :32, :32] = True
        boxes, classes = Boxes(torch.tensor([[0.0, 0.0, 32.0, 32.0]])), torch.zeros(1, dtype=torch.long)
        sample["instances"] = Instances(
            (64, 64), gt_boxes=boxes, gt_classes=classes, gt_masks=BitMasks(masks)
        )
    with EventStorage():
        losses = model(batch)
    assert {"loss_sem_seg", "loss_mask", "loss_car_intra_c2p"} <= set(losses)
    sum(losses.values()).backward()
    assert model.backbone.bottom_up.res5[0].conv1.weight.grad.abs().sum() > 0
