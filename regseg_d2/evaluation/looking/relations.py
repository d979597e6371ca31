"""How near classes, and pixels, are to each other in feature space: the numbers behind the papers' maps.

A class without a pixel is a row and column of NaN.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from regseg_d2.ops import rch
from regseg_d2.ops.class_statistics import divide_by_counts


def dependency_map(centers: np.ndarray) -> np.ndarray:
    """Dot products of class centers (CAR, ECCV 2022, Figure 4).

    Args:
        centers: ``(K, C)``, NaN for a class without a pixel.

    Returns:
        ``(K, K)``.
    """
    return centers @ centers.T


def cosine_matrix(centers: np.ndarray) -> np.ndarray:
    """Cosines between class centers: :func:`dependency_map` whatever the features' lengths.

    Args:
        centers: ``(K, C)``, NaN for a class without a pixel. A center of length 0 has cosines of 0.

    Returns:
        ``(K, K)``.
    """
    lengths = np.linalg.norm(centers, axis=1, keepdims=True)
    return dependency_map(centers / np.where(lengths > 0, lengths, 1.0))


def mean_cosines(unit_sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean cosine over all pairs of a pixel of one class and a pixel of another (RCH, AAAI 2022, Figure 6).

    Within a class a pixel is paired with itself, too. The mean of products of unit vectors is the product of
    their means.

    Args:
        unit_sums: ``(K, C)`` sums of features at unit length.
        counts: ``(K,)`` how many were added.

    Returns:
        ``(K, K)``.
    """
    counts = counts[:, None].astype(np.float64)
    return dependency_map(unit_sums / np.where(counts > 0, counts, np.nan))


def relation_map(feature: Tensor, cell: tuple[int, int], normalized: bool = True) -> np.ndarray:
    """Similarity of one cell to all of an image.

    Args:
        feature: ``(C, h, w)``.
        cell: row and column of the cell in question.
        normalized: cosines (RCH, AAAI 2022, Figure 1 c); else dot products (CAR, ECCV 2022, Figure 5). A
            feature of length 0 has cosines of 0.

    Returns:
        ``(h, w)`` float32.
    """
    # In float64: the last bits of a product depend on where in memory its factors are.
    rows = feature.detach().cpu().double().flatten(1)
    if normalized:
        rows = torch.nn.functional.normalize(rows, dim=0)
    chosen = rows[:, cell[0] * feature.shape[2] + cell[1]]
    return (chosen @ rows).view(feature.shape[1:]).float().numpy()


def calibration_maps(
    feature: Tensor, cell_labels: Tensor, cell_predictions: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """FN compensation and FP penalty of each cell of an image (RCH, AAAI 2022, Eq. 7 and 6, Figure 5).

    Args:
        feature: ``(C, h, w)``, the embedding of both.
        cell_labels: ``(h, w)`` classes, void is -1.
        cell_predictions: ``(h, w)`` classes.

    Returns:
        phi and psi, ``(h, w)`` float64 in [0, 2]; NaN in void cells.
    """
    x = feature.detach().cpu().double().flatten(1).unsqueeze(0)
    labels, predicted = (cells.cpu().flatten().unsqueeze(0) for cells in (cell_labels, cell_predictions))
    sets = rch.decouple(labels, predicted)
    # Errors matter to pixels of their class alone, so that only classes in the label are compared with.
    rows = labels[labels >= 0].unique()
    members = rch.membership(labels, rows, x.dtype)
    terms = []
    for wrong in (sets.false_negative, sets.false_positive):
        wrong_members = rch.membership(wrong, rows, x.dtype)
        sums, inverse_norms = rch.unit_class_sums(x, wrong_members)
        counts = wrong_members.sum(dim=2)
        cosines = rch.cosines(x, inverse_norms, divide_by_counts(sums, counts))
        present = (counts > 0).to(x.dtype).unsqueeze(2).expand_as(members)
        terms += [rch.own_values(cosines, members), rch.own_values(present, members) > 0]
    fn_cosine, has_fn, fp_cosine, has_fp = terms
    phi, psi = rch.calibration_terms(fn_cosine, fp_cosine, has_fn, has_fp)
    is_void = labels < 0
    return (
        phi.masked_fill(is_void, torch.nan).view(cell_labels.shape).numpy(),
        psi.masked_fill(is_void, torch.nan).view(cell_labels.shape).numpy(),
    )


def intra_inter_ratios(counts: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """How wide each class is for its distance to the others; no scale of the features changes it.

    Args:
        counts: ``(K,)`` pixels of each class.
        sums: ``(K, C)`` sums of their features.
        squares: ``(K,)`` sums of their squared lengths.

    Returns:
        ``(K,)``: root mean square distance of a class's pixels to their center, over the mean distance of
        that center to those of the other classes. NaN where there is no other class, or all centers are one.
    """
    present = counts > 0
    number = counts[present].astype(np.float64)
    centers = sums[present] / number[:, None]
    intra = np.sqrt(np.maximum(squares[present] / number - (centers**2).sum(axis=1), 0.0))
    inter = cdist(centers, centers).sum(axis=1) / max(len(centers) - 1, 1)
    ratios = np.full(len(counts), np.nan)
    ratios[present] = intra / np.where(inter > 0, inter, np.nan)
    return ratios
