"""Keys of CAR."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.regularizers.common import common_defaults


def car_defaults() -> CfgNode:
    """CAR (Huang et al., ECCV 2022). Paper value = default, unless a comment says otherwise."""
    # FEATURES "auto": the linear convolution of LinearConvBlock where the head has one (the paper's
    # place), else the classifier's input. WEIGHT, sane: 0.1 to 2.
    car = common_defaults(weight=1.0)
    # L_intra-c2p (Eq. 2), L_inter-c2c (Eq. 7), L_inter-c2p (Eq. 14); 0 switches a loss off (Table 1).
    car.INTRA_C2P_WEIGHT = 1.0
    car.INTER_C2C_WEIGHT = 1.0
    car.INTER_C2P_WEIGHT = 1.0
    # Average-pool X by this factor first; 2 on stride-4 features (published code, UPerNet).
    car.POOL = 1
    # mu of Eq. 1: over the batch of all processes (batch), over each image (image, Table 4), or a
    # moving average (ema, Table 5).
    car.CENTERS = "batch"
    # Share of the old center in the moving average: 0.8, 0.9 or 0.99 (Table 5).
    car.EMA_DECAY = 0.9
    # epsilon_0 of Eq. 6; 0.25 on the rows of Table 2 marked with a section sign. Sane: 0 to 1.
    car.EPS_C2C = 0.5
    # epsilon_1 of Eq. 13. Sane: 0 to 1.
    car.EPS_C2P = 0.25
    # Scale the products of Eq. 8-10 by 1/sqrt(C). The paper writes no scale there; the published code
    # scales, and so do we.
    car.SCALE_C2P = True
    # exclude: a class without a pixel takes no part. zero: its zero center stays in the softmaxes
    # (published code).
    car.ABSENT_CLASSES = "exclude"
    # Centers are constants in the two pixel losses, and so is the second operand of Eq. 4 (published
    # code; the paper does not say).
    car.DETACH_CENTERS = True
    # mse: mean of squares (paper). squared_mean: square of the mean (published code).
    car.REDUCTION = "mse"
    return car
