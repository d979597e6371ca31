"""Mask2Former and MaskFormer of Detectron2's users, where their packages can be imported.

Their code is not part of this one: put a checkout on PYTHONPATH (facebookresearch/Mask2Former,
facebookresearch/MaskFormer). Both register a MaskFormer, so each has a process of its own.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

PACKAGES = ["mask2former", "mask_former"]
METHODS = ["CAR", "ContrastSeg", "PNE", "RCH", "RegionContrast"]

# Before anything else of either program.
STAND_INS = """
import json, sys, types, warnings
import torch

warnings.simplefilter("ignore")
try:
    from detectron2 import _C
except ImportError:  # of Detectron2's compiled parts they need the names only
    import detectron2
    detectron2._C = sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")
try:
    import MultiScaleDeformableAttention
except ImportError:  # their attention in plain PyTorch takes over when the call fails
    sys.modules["MultiScaleDeformableAttention"] = types.ModuleType("MultiScaleDeformableAttention")
"""

TRAINING = """
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils.events import EventStorage

from regseg_d2.config import add_regseg_config
from regseg_d2.data.class_masks import class_masks
from regseg_d2.segmentor.build import build_model
from tests.helpers import small_batch

package, names = sys.argv[1], sys.argv[2].split(",")
cfg = get_cfg()
add_deeplab_config(cfg)
if package == "mask2former":
    from mask2former import add_maskformer2_config as add_config
else:
    from mask_former import add_mask_former_config as add_config
add_config(cfg)
add_regseg_config(cfg)
cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "RegularizedMaskFormer", "cpu", ""
cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
stages = ["res2", "res3", "res4", "res5"]
resnet, head, former = cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
resnet.OUT_FEATURES, resnet.NORM, resnet.STEM_TYPE, resnet.WIDTH_PER_GROUP = stages, "BN", "basic", 4
resnet.RES2_OUT_CHANNELS = resnet.STEM_OUT_CHANNELS = 16
head.NAME, head.NUM_CLASSES, head.IN_FEATURES, head.COMMON_STRIDE = "MaskFormerHead", 5, stages, 4
head.CONVS_DIM = head.MASK_DIM = former.HIDDEN_DIM = 32
former.NUM_OBJECT_QUERIES, former.NHEADS, former.DIM_FEEDFORWARD, former.DEC_LAYERS = 6, 4, 64, 3
former.SIZE_DIVISIBILITY, former.DEEP_SUPERVISION = 32, True
if package == "mask2former":
    head.PIXEL_DECODER_NAME, head.TRANSFORMER_ENC_LAYERS = "MSDeformAttnPixelDecoder", 1
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = stages[1:]
    former.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    former.TRANSFORMER_IN_FEATURE, former.TRAIN_NUM_POINTS = "multi_scale_pixel_decoder", 128
    former.TEST.SEMANTIC_ON = True
else:
    head.PIXEL_DECODER_NAME, former.TRANSFORMER_IN_FEATURE = "BasePixelDecoder", "res5"
cfg.DATASETS.TRAIN = ("toy",)
MetadataCatalog.get("toy").set(stuff_classes=list("abcde"), ignore_label=255)
cfg.MODEL.REGULARIZERS.NAMES = names
torch.manual_seed(0)
model = build_model(cfg)
batch = small_batch() + small_batch(1, labels="void")  # the last one has no mask
for sample in batch:
    sample["instances"] = class_masks(sample["sem_seg"], 255)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
totals = []
with EventStorage():
    for _ in range(10):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append({name: float(loss.detach()) for name, loss in losses.items()})
model.eval()
cfg.MODEL.REGULARIZERS.NAMES = []
plain = build_model(cfg).eval()
plain.load_state_dict(model.plain_state_dict(), strict=True)  # keys change their names without metadata
with torch.no_grad():
    same = all(torch.equal(a["sem_seg"], b["sem_seg"]) for a, b in zip(model(batch), plain(batch)))
taps = {name: [r.feature_tap, r.logits_tap] for name, r in model.regularizers.items()}
print(json.dumps({"losses": totals, "same": same, "taps": taps}))
"""


# The samples of both mappers without augmentation, padded to 40x40.
MAPPING = """
from importlib import import_module
from pathlib import Path

from PIL import Image

from regseg_d2.data.mapper import TrainMapper
from tests.data.data_helpers import toy_cfg, toy_spec, write_toy

package, folder = sys.argv[1:]
spec = toy_spec(write_toy(Path(folder)))
spec.register()
records = spec.load()
Image.new("L", (30, 20), 255).save(records[1]["sem_seg_file_name"])  # all void
mapper = import_module(f"{package}.data.dataset_mappers.mask_former_semantic_dataset_mapper")
theirs = mapper.MaskFormerSemanticDatasetMapper(
    augmentations=[], image_format="RGB", ignore_label=255, size_divisibility=40
)
keys = {"INPUT__SCALE_RANGE": [1.0, 1.0], "INPUT__RANDOM_FLIP": "none", "INPUT__CROP__SIZE": [40, 40]}
ours = TrainMapper(toy_cfg(**keys, INPUT__CLASS_MASKS=True), seed=0)
results = []
for number, record in enumerate(records):
    sample, other = ours(record, number), theirs(record)
    mine, own = sample["instances"], other["instances"]
    results.append({
        "count": len(own),
        "size": mine.image_size == own.image_size,
        "labels": torch.equal(sample["sem_seg"], other["sem_seg"]),
        "classes": torch.equal(mine.gt_classes, own.gt_classes),
        "masks": torch.equal(mine.gt_masks, own.gt_masks.bool()),
        "fields": set(mine.get_fields()) == set(own.get_fields()),
    })
print(json.dumps(results))
"""


def run(program, package, *arguments):
    """The last line that a program prints, from JSON; skips where there is no such package."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not on the path: put a checkout of its repository on PYTHONPATH")
    command = [sys.executable, "-c", STAND_INS + program, package, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_its_own_mapper_gives_the_same_masks(package, tmp_path):
    results = run(MAPPING, package, str(tmp_path))
    counts = [result.pop("count") for result in results]
    assert len(counts) == 6 and counts[1] == 0 and max(counts) == 3
    assert all(all(result.values()) for result in results), results


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_it_trains_with_regularizers(package):
    result = run(TRAINING, package, ",".join(METHODS))
    assert len(result["losses"]) == 10
    first, last = result["losses"][0], result["losses"][-1]
    assert sum(last.values()) < sum(first.values())
    assert all(
        value == value and abs(value) < 1e4 for losses in result["losses"] for value in losses.values()
    )
    for method in ("car_intra_c2p", "contrast_seg_contrast"):
        assert 0 < last[f"loss_{method}"] < first[f"loss_{method}"]
    assert result["taps"]["ContrastSeg"] == [
        "sem_seg_head.pixel_decoder.mask_features:in",
        "sem_seg_head.predictor:masks",
    ]
    assert result["taps"]["RCH"][0] == "backbone:out[res5]"
    assert result["same"]  # evaluation, with regularizers and from a checkpoint without
