"""Encoding: a code of the whole image scales the channels, the context of EncNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from regseg_d2.common.distributed import global_mean
from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, init_classifier
from regseg_d2.modeling.norms import get_norm
from regseg_d2.ops.precision import full_precision


@CONTEXT_MODULE.register()
class Encoding(Stage):
    """Context encoding module (Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018).

    A 3x3 block narrows the input. An :class:`EncodingLayer` describes the image by what is left of its pixels
    beside learned codewords; the mean over the codewords is the code of the image (section 2.1). From it come
    a factor for each channel of the feature, and in training, as the side output ``se``, logits of the
    classes that the image has, with :class:`PresenceLoss`. With it the paper's head is complete: behind it
    comes the classifier, ``MODEL.SEM_SEG_HEAD.PROJECTION: ""``.

    The layers are those of mmsegmentation's ``EncHead`` without lateral connections. As there and in the
    authors' code, the feature is multiplied by 1 + the factor (the paper: by the factor), and the codewords'
    parts are averaged (the paper: summed).

    ``num_codes`` is the number of codewords, ``se_loss_weight`` the weight of the loss of the side output.
    """

    #: Name of the presence of classes among the side outputs: its loss is ``loss_sem_seg_se``.
    presence_name = "se"

    head_keys = {"num_codes": "ENCNET_NUM_CODES", "se_loss_weight": "ENCNET_SE_LOSS_WEIGHT"}

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        num_codes: int,
        num_classes: int,
        ignore_value: int,
        se_loss_weight: float,
        norm: str,
    ) -> None:
        super().__init__()
        in_groups = norm == "GN"
        check_head_key(
            "ENCNET_NUM_CODES",
            num_codes,
            num_codes >= 1 and not (in_groups and num_codes % 32),
            "a multiple of the 32 groups of NORM GN" if in_groups else "1 or more",
        )
        check_head_key("ENCNET_SE_LOSS_WEIGHT", se_loss_weight, se_loss_weight >= 0, "a number >= 0")
        self.out_channels = out_channels
        self.side_loss_weights = {self.presence_name: se_loss_weight}
        self.side_losses = {self.presence_name: PresenceLoss(num_classes, ignore_value)}
        self.bottleneck = conv_norm_relu(in_channels, out_channels, 3, norm)
        self.encoding_project = conv_norm_relu(out_channels, out_channels, 1, norm)
        self.encoding = EncodingLayer(out_channels, num_codes)
        self.encoding_norm = get_norm(norm, num_codes) or nn.Identity()
        self.factors = nn.Linear(out_channels, out_channels)
        self.se_predictor = nn.Linear(out_channels, num_classes)
        init_classifier(self.se_predictor)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``; in training ``se`` ``(N, K)``."""
        x = self.bottleneck(x)
        code = self._code(self.encoding_project(x))
        factors = self.factors(code).sigmoid()
        # No ReLU behind: neither the block's output nor 1 + a sigmoid is ever negative.
        features = x * (1 + factors)[:, :, None, None]
        return features, {self.presence_name: self.se_predictor(code)} if self.training else {}

    def _code(self, x: Tensor) -> Tensor:
        """The code ``(N, C)`` of images ``(N, C, h, w)``."""
        # In float32 or better: the assignments are exponentials of squared distances.
        with torch.autocast(x.device.type, enabled=False):
            parts = self.encoding(full_precision(x))
            # The norm's channels are the codewords.
            return self.encoding_norm(parts.unsqueeze(3)).relu().mean(dim=(1, 3))


class EncodingLayer(nn.Module):
    """Residual encoding (Zhang et al., "Deep TEN: Texture Encoding Network", CVPR 2017), with D codewords.

    Every pixel is assigned to the codewords softly, by its distance from each, which a learned factor scales;
    a codeword's part is the sum of the differences of the pixels from it, weighted by the assignments.
    """

    def __init__(self, channels: int, num_codes: int) -> None:
        super().__init__()
        bound = (channels * num_codes) ** -0.5
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))
        #: The smoothing factors with their sign: -s of the paper.
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` to ``(N, D, C)``.

        The differences, ``(N, D, C, h * w)`` numbers, are never written down: distances and sums are taken
        apart into products of matrices.
        """
        x = x.flatten(2)
        squares = x.square().sum(dim=1, keepdim=True) + self.codewords.square().sum(dim=1)[:, None]
        distances = squares - 2 * torch.matmul(self.codewords, x)
        assignments = (self.scale[:, None] * distances).softmax(dim=1)
        sums = torch.bmm(assignments, x.transpose(1, 2))
        return sums - assignments.sum(dim=2, keepdim=True) * self.codewords


class PresenceLoss(nn.Module):
    """Semantic encoding loss (section 2.1): binary cross entropy of the classes that an image has.

    A class that has a single pixel counts like one that has many. Images that are void everywhere do not
    count (mmsegmentation: they have no class); the mean is over the other images of all processes and the
    classes.
    """

    def __init__(self, num_classes: int, ignore_value: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_value = ignore_value

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compares logits ``(N, K)`` and labels ``(N, H, W)``; a scalar."""
        logits = full_precision(logits)
        labels = labels.flatten(1)
        is_class = (labels >= 0) & (labels < self.num_classes) & (labels != self.ignore_value)
        # Void goes to a column of its own, which is cut off.
        columns = torch.where(is_class, labels, self.num_classes)
        presence = logits.new_zeros(len(logits), self.num_classes + 1).scatter_(1, columns, 1.0)[:, :-1]
        losses = F.binary_cross_entropy_with_logits(logits, presence, reduction="none").mean(dim=1)
        counts = is_class.any(dim=1)
        return global_mean((losses * counts).sum(), counts.sum())
