"""Cross entropy of bilinearly upsampled logits that are never held as a whole.

With many classes the upsampled logits ``(N, K, H, W)`` are the largest tensor of a training step, and plain
upsampling and cross entropy hold several of that size. Here they are made tile by tile, small enough for the
cache of a processor, and each tile leaves its pixels' losses and its share of the gradient of the logits at
feature size. Upsampling is linear and separable, so it is one product with a matrix of interpolation weights
for each axis, and its transpose takes gradients back: to the same bits each time, on a GPU too. (Where TF32
products are allowed on a GPU, these are among them.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from regseg_d2.ops.bilinear import AxisPiece, interpolation_pieces
from regseg_d2.ops.known_gradients import with_gradient
from regseg_d2.ops.precision import full_precision

#: Elements of a tile. On a CPU, for each thread: what stays in a core's cache from one operation to the next
#: (1 MB of float32). Elsewhere: what makes starting an operation a small part of its time (128 MB).
CPU_TILE_ELEMENTS, TILE_ELEMENTS = 2**18, 2**25
#: Columns of a tile. In wider ones most of the interpolation weights are zeros.
CPU_TILE_COLUMNS, TILE_COLUMNS = 64, 512


def upsampled_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    pixel_weights: Tensor,
    ignore_value: int,
    tile_elements: int | None = None,
) -> Tensor:
    """Weighted sum of the cross entropies of all pixels, of logits that are upsampled to the labels' size.

    Equals ``F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), targets, reduction="none")``, times
    the weights, summed up. The gradient is computed with the value, where one is wanted; it has no second
    derivative.

    Args:
        logits: ``(N, K, h, w)``; half precision is computed in float32.
        targets: class ids ``(N, H, W)``; H and W may be any, also below h and w.
        pixel_weights: ``(N, H, W)``, no gradient; 0 at void pixels.
        ignore_value: label of void pixels.
        tile_elements: upsampled logits that are held at a time, about; by default what suits the device.

    Returns:
        A scalar of type float32, or float64 where the logits are.

    Raises:
        IndexError: if a label is neither a class nor void (on a CPU; a GPU stops with an error of its own).
        ValueError: if shapes do not match.
    """
    logits = full_precision(logits)
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    losses, gradient = _sweep(
        logits, targets, ignore_value, pixel_weights if wants_gradient else None, tile_elements
    )
    total = (losses * pixel_weights.to(losses.dtype)).sum()
    return total if gradient is None else with_gradient(logits, total, gradient)


def upsampled_pixel_losses(logits: Tensor, targets: Tensor, ignore_value: int) -> Tensor:
    """Cross entropy of each pixel, of logits that are upsampled to the labels' size; no gradient.

    Args:
        logits: ``(N, K, h, w)``.
        targets: class ids ``(N, H, W)``.
        ignore_value: label of void pixels.

    Returns:
        ``(N, H, W)``, 0 at void pixels.

    Raises:
        IndexError, ValueError: see :func:`upsampled_cross_entropy`.
    """
    losses, _ = _sweep(full_precision(logits), targets, ignore_value, None, None)
    return losses.masked_fill_(targets == ignore_value, 0)


@torch.no_grad()
def _sweep(
    logits: Tensor,
    targets: Tensor,
    ignore_value: int,
    pixel_weights: Tensor | None,
    tile_elements: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Losses ``(N, H, W)``, of any value at void pixels, and with weights the gradient of their sum."""
    labels = _class_ids(logits, targets, ignore_value)
    (in_height, in_width), (height, width) = logits.shape[2:], labels.shape[1:]
    images, rows, columns = _tile_shape(logits, labels, tile_elements)
    row_pieces = interpolation_pieces(in_height, height, rows, logits.dtype, logits.device)
    column_pieces = interpolation_pieces(in_width, width, columns, logits.dtype, logits.device)
    losses = logits.new_empty(labels.shape)
    gradient = None if pixel_weights is None else torch.empty_like(logits)
    with torch.autocast(logits.device.type, enabled=False):
        for start in range(0, len(logits), images):
            some = slice(start, start + images)
            by_place = logits[some].permute(0, 2, 3, 1).contiguous()
            place_gradient = None if gradient is None else torch.zeros_like(by_place)
            weights = None if pixel_weights is None else pixel_weights[some].to(logits.dtype)
            for piece in row_pieces:
                _sweep_band(
                    by_place, piece, column_pieces, labels[some], weights, losses[some], place_gradient
                )
            if gradient is not None and place_gradient is not None:
                gradient[some] = place_gradient.permute(0, 3, 1, 2)
    return losses, gradient


def _sweep_band(
    logits: Tensor,
    piece: AxisPiece,
    column_pieces: list[AxisPiece],
    labels: Tensor,
    weights: Tensor | None,
    losses: Tensor,
    gradient: Tensor | None,
) -> None:
    """Writes the losses of a band of rows, and adds to the gradient of the logits it is made of.

    Args:
        logits: ``(n, h, w, K)``.
        piece: the band.
        column_pieces: the tiles of the band.
        labels: ``(n, H, W)``.
        weights: of pixels, ``(n, H, W)``, or None.
        losses: ``(n, H, W)``, written to.
        gradient: ``(n, h, w, K)``, added to, or None.
    """
    images, _, in_width, classes = logits.shape
    rows = (piece.matrix @ logits[:, piece.inputs].flatten(2)).unflatten(2, (in_width, classes))
    # Columns outermost on both ways: thin products are several times as fast when the thin side is that of
    # the rows of a matrix.
    band = rows.permute(2, 0, 1, 3).flatten(1)  # (w, n R K)
    band_gradient = None if gradient is None else torch.zeros_like(band)
    for columns in column_pieces:
        pixels = (slice(None), piece.outputs, columns.outputs)
        tile_labels = labels[pixels].flatten(0, 1).unsqueeze(1)  # (n R, 1, C)
        tile = (band[columns.inputs].T @ columns.matrix.T).unflatten(0, (-1, classes))  # (n R, K, C)
        tile.sub_(tile.amax(1, keepdim=True))
        true_logits = tile.gather(1, tile_labels)
        exponentials = tile.exp_()
        sums = exponentials.sum(1, keepdim=True)
        losses[pixels] = (sums.log() - true_logits).view_as(losses[pixels])
        if band_gradient is not None and weights is not None:
            tile_weights = weights[pixels].flatten(0, 1).unsqueeze(1)
            slopes = exponentials.mul_(tile_weights / sums).scatter_add_(1, tile_labels, -tile_weights)
            band_gradient[columns.inputs].addmm_(columns.matrix.T, slopes.flatten(0, 1).T)
    if gradient is not None and band_gradient is not None:
        row_gradient = band_gradient.view(in_width, images, -1, classes).permute(1, 2, 0, 3).flatten(2)
        gradient[:, piece.inputs].flatten(2).add_(piece.matrix.T @ row_gradient)


def _tile_shape(logits: Tensor, labels: Tensor, elements: int | None) -> tuple[int, int, int]:
    """Images, rows and columns of a tile."""
    on_cpu = logits.device.type == "cpu"
    if elements is None:
        elements = CPU_TILE_ELEMENTS * torch.get_num_threads() if on_cpu else TILE_ELEMENTS
    (batch, classes), (height, width) = logits.shape[:2], labels.shape[1:]
    columns = min(CPU_TILE_COLUMNS if on_cpu else TILE_COLUMNS, width)
    rows = min(max(elements // (classes * columns), 1), height)
    images = min(max(elements // (classes * columns * rows), 1), batch)
    return images, rows, columns


def _class_ids(logits: Tensor, targets: Tensor, ignore_value: int) -> Tensor:
    """Labels with a class in place of void; checked where that does not make a GPU wait."""
    if logits.ndim != 4 or targets.ndim != 3 or len(logits) != len(targets):
        raise ValueError(
            f"logits are {tuple(logits.shape)} and labels {tuple(targets.shape)}; expected (N, K, h, w) and "
            "(N, H, W)"
        )
    classes = logits.shape[1]
    labels = targets.long().masked_fill(targets == ignore_value, 0)
    if labels.device.type == "cpu" and labels.numel():
        lowest, highest = (value.item() for value in labels.aminmax())
        if lowest < 0 or highest >= classes:
            raise IndexError(
                f"label {lowest if lowest < 0 else highest} is no class: expected 0 to {classes - 1}, or "
                f"{ignore_value} for void"
            )
    return labels
