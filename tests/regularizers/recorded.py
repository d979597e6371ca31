"""Losses and gradients of every method over its options, to be the same tomorrow.

``python -m tests.regularizers.recorded`` writes them anew, where a change of the numbers is meant.
"""

import json
from pathlib import Path

import torch
from torch import nn

from regseg_d2.regularizers import RegularizerInput
from regseg_d2.segmentor.regularizers import build_label_sampling, build_regularizers
from tests.helpers import small_cfg

FILE = Path(__file__).with_name("recorded.json")
K, C, STEPS = 5, 16, 3
TAP, LOGITS = "sem_seg_head.predictor:in", "sem_seg_head.predictor:out"
# Keys of the methods' sections that are not the default.
CASES = {
    "CAR": {
        "default": {},
        "image": {"CENTERS": "image"},
        "ema": {"CENTERS": "ema", "DETACH_CENTERS": False, "EMA_DECAY": 0.7},
        "ema_detached": {"CENTERS": "ema"},
        "pool": {"POOL": 2},
        "pool3_image": {"POOL": 3, "CENTERS": "image"},
        "published": {"ABSENT_CLASSES": "zero", "REDUCTION": "squared_mean"},
        "no_scale": {"SCALE_C2P": False, "EPS_C2C": 0.25, "EPS_C2P": 0.1, "WEIGHT": 0.3},
        "no_c2c": {"INTER_C2C_WEIGHT": 0.0, "INTRA_C2P_WEIGHT": 0.5},
        "no_intra": {"INTRA_C2P_WEIGHT": 0.0},
        "undetached": {"DETACH_CENTERS": False},
        "warm": {"WARMUP_ITERS": 2},
        "linear": {"WARMUP_ITERS": 4, "WARMUP_METHOD": "linear"},
        "until": {"UNTIL_ITER": 2},
    },
    "RegionContrast": {
        "default": {"BANK_SIZE": 4},
        "big": {},
        "half": {"BANK_SIZE": 3, "BANK_DTYPE": "float16"},
        "gt_mean": {"CENTER": "gt_mean", "BANK_SIZE": 4},
        "predicted": {"CENTER": "predicted", "BANK_SIZE": 4},
        "no_bank": {"BANK_SIZE": 0},
        "class_sum": {"REDUCTION": "class_sum", "BANK_SIZE": 4, "TEMPERATURE": 0.1},
        "no_bank_sum": {"BANK_SIZE": 0, "REDUCTION": "class_sum"},
        "linear": {"BANK_SIZE": 4, "WARMUP_ITERS": 4, "WARMUP_METHOD": "linear"},
    },
    "RCH": {
        "default": {"CHANNELS": 8},
        "wide": {},
        "gt": {"CHANNELS": 8, "PROTOTYPES": "gt"},
        "learned": {"CHANNELS": 8, "PROTOTYPES": "learned"},
        "batch": {"CHANNELS": 8, "ERRORS": "batch"},
        "detached": {"CHANNELS": 8, "DETACH_PROTOTYPES": True},
        "no_fp": {"CHANNELS": 8, "FP_PENALTY": False},
        "no_fn": {
            "CHANNELS": 8,
            "FN_COMPENSATION": False,
            "CALIBRATION_SCALE": 0.25,
            "TEMPERATURE": 0.3,
            "EMA_DECAY": 0.8,
        },
    },
    "PNE": {
        "default": {"CHANNELS": 8},
        "few": {"CHANNELS": 8, "NUM_SAMPLES": 5, "MAX_ANCHORS": 4},
        "batch": {"CHANNELS": 8, "NUM_SAMPLES": 5, "SCOPE": "batch"},
        "asymmetric": {"CHANNELS": 8, "NUM_SAMPLES": 5, "CONTRAST": "asymmetric"},
        "logit": {"CHANNELS": 8, "NUM_SAMPLES": 5, "POSITIVE_WEIGHTS": "logit"},
        "none": {"CHANNELS": 8, "NUM_SAMPLES": 5, "POSITIVE_WEIGHTS": "none", "NO_NEGATIVES": "exclude"},
        "anchors": {"CHANNELS": 8, "NUM_SAMPLES": 5, "NO_NEGATIVES": "anchors"},
        "no_ias": {"CHANNELS": 8, "NUM_SAMPLES": 5, "INDIVIDUAL_ANCHOR_SETS": False},
        "no_cn": {"CHANNELS": 8, "NUM_SAMPLES": 5, "CORRESPONDING_NEGATIVES": False, "SCOPE": "batch"},
        "undetached": {"CHANNELS": 8, "NUM_SAMPLES": 5, "DETACH_SAMPLES": False, "TEMPERATURE": 0.5},
    },
    "MDRL": {
        "default": {},
        "few": {"NUM_DISTRIBUTIONS": 3, "MOMENTUM": 0.5, "SINKHORN_ITERS": 5, "SINKHORN_LAMBDA": 0.1},
        "local": {"GLOBAL_WEIGHT": 0.0, "NUM_DISTRIBUTIONS": 3},
        "global": {"LOCAL_WEIGHT": 0.0, "NUM_DISTRIBUTIONS": 3, "TEMPERATURE": 0.2, "WEIGHT": 2.0},
    },
    "ContrastSeg": {
        "default": {"CHANNELS": 8},
        "random": {"CHANNELS": 8, "ANCHORS": "random", "MAX_ANCHORS": 40, "MAX_VIEWS": 7},
        "semi": {
            "CHANNELS": 8,
            "SAMPLING": "semi_hard",
            "NUM_POSITIVES": 6,
            "NUM_NEGATIVES": 9,
            "HARD_FRACTION": 0.3,
        },
        "memory": {"CHANNELS": 8, "MEMORY": True, "MEMORY_SIZE": 9, "MAX_VIEWS": 1, "TEMPERATURE": 0.07},
        "memory_half": {
            "CHANNELS": 8,
            "MEMORY": True,
            "MEMORY_SIZE": 9,
            "MEMORY_DTYPE": "float16",
            "PIXELS_PER_CLASS": 3,
            "MIN_PIXELS": 3,
        },
        "memory_semi": {
            "CHANNELS": 8,
            "MEMORY": True,
            "MEMORY_SIZE": 9,
            "SAMPLING": "semi_hard",
            "NUM_POSITIVES": 6,
            "NUM_NEGATIVES": 9,
        },
    },
}


def make_tensors(generator, step):
    """A feature, logits twice its size that are often right, and labels eight times its size."""
    feature = torch.randn(2, C, 12, 10, generator=generator)
    blocks = torch.randint(0, K, (2, 6, 5), generator=generator)
    blocks = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels = torch.where(torch.rand(2, 96, 80, generator=generator) < 0.1, 255, blocks)
    if step == 1:
        labels[labels == 2] = 3
    logits = torch.randn(2, K, 24, 20, generator=generator)
    logits.scatter_add_(1, blocks[:, 2::4, 2::4].unsqueeze(1), torch.full((2, 1, 24, 20), 1.5))
    return feature.double().requires_grad_(), logits.double(), labels


def run_case(method, name):
    """Numbers of each step: the losses, and length and a weighted sum of the gradients."""
    torch.manual_seed(3)
    network = nn.ModuleDict({"sem_seg_head": nn.ModuleDict({"predictor": nn.Conv2d(C, K, 1)})})
    cfg = small_cfg("FCN", [method], SEED=7, REGULARIZERS__LABELS="corner")
    cfg.MODEL.REGULARIZERS[method].FEATURES = TAP
    cfg.MODEL.REGULARIZERS[method].update(CASES[method][name])
    regularizer = build_regularizers(cfg, network)[method].double()
    generator = torch.Generator().manual_seed(11)
    steps = []
    for step in range(STEPS):
        feature, logits, labels = make_tensors(generator, step)
        taps = {TAP: feature, LOGITS: logits}
        inputs = RegularizerInput(taps, labels, K, label_sampling=build_label_sampling(cfg))
        losses = regularizer(inputs)
        regularizer.zero_grad()
        sum(losses.values()).backward()
        numbers = {key: loss.item() for key, loss in losses.items()}
        numbers |= digest("feature", [feature.grad])
        parameters = list(regularizer.parameters())
        if parameters:
            numbers |= digest("parameters", [parameter.grad for parameter in parameters])
        steps.append(numbers)
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.1 * parameter.grad
    return steps


def digest(name, gradients):
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    weights = torch.linspace(-1, 1, len(flat), dtype=flat.dtype).cos()
    return {f"{name} length": flat.norm().item(), f"{name} sum": (weights * flat.abs()).sum().item()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    record = {method: {name: run_case(method, name) for name in cases} for method, cases in CASES.items()}
    FILE.write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")
