"""CAR's equations as slow loops in float64, written from the paper (ECCV 2022, Eq. 1 to 14).

Features are lists of images, each ``(P, C)``; labels are lists of ``P`` ids, void is None.
"""

import math

import torch


def centers_of(pixels, labels, num_classes):
    """Eq. 1: mean feature of each class, None for a class without a pixel."""
    centers = []
    for k in range(num_classes):
        members = [x for x, y in zip(pixels, labels, strict=True) if y == k]
        centers.append(sum(members) / len(members) if members else None)
    return centers


def f_mse(values, reduction):
    """The reduction of Eq. 2, 7 and 14, and the one of the published code."""
    if not values:
        return 0.0
    if reduction == "mse":
        return sum(v * v for v in values) / len(values)
    return (sum(v if v >= 0 else -v for v in values) / len(values)) ** 2


def softmax(values):
    top = max(float(v.detach()) for v in values)
    exponentials = [torch.exp(v - top) for v in values]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def intra_c2p(images, labels, centers_per_image, detach, reduction):
    """Eq. 2 and 3."""
    differences = []
    for pixels, ids, centers in zip(images, labels, centers_per_image, strict=True):
        for x, y in zip(pixels, ids, strict=True):
            if y is None:
                continue
            center = centers[y].detach() if detach else centers[y]
            differences.extend(list(center - x))
    return f_mse(differences, reduction)


def inter_c2c(center_sets, num_classes, channels, epsilon, absent, detach, reduction):
    """Eq. 4 to 7; one set of centers for the batch, or one an image."""
    rows = []
    for centers in center_sets:
        centers = fill_absent(centers, channels, absent)
        for i in range(num_classes):
            if centers[i] is None:
                continue
            others = [j for j in range(num_classes) if centers[j] is not None]
            products = []
            for j in others:
                key = centers[j].detach() if detach else centers[j]
                products.append((centers[i] * key).sum() / math.sqrt(channels))
            relation = softmax(products)
            row = torch.zeros((), dtype=torch.float64)
            for j, a in zip(others, relation, strict=True):
                excess = a - epsilon / (num_classes - 1)
                if j != i and excess > 0:
                    row = row + excess
            rows.append(row)
    return f_mse(rows, reduction)


def inter_c2p(
    images, labels, centers_per_image, num_classes, channels, epsilon, scale, absent, detach, reduction
):
    """Eq. 8 to 14."""
    penalties = []
    for pixels, ids, centers in zip(images, labels, centers_per_image, strict=True):
        centers = fill_absent(centers, channels, absent)
        centers = [c if c is None or not detach else c.detach() for c in centers]
        for x, y in zip(pixels, ids, strict=True):
            if y is None:
                continue
            classes = [k for k in range(num_classes) if centers[k] is not None]
            products = []
            for k in classes:
                product = (centers[k] * centers[k]).sum() if k == y else (x * centers[k]).sum()
                products.append(product / math.sqrt(channels) if scale else product)
            penalty = torch.zeros((), dtype=torch.float64)
            for k, a in zip(classes, softmax(products), strict=True):
                excess = a - epsilon / (num_classes - 1)
                if k != y and excess > 0:
                    penalty = penalty + excess
            penalties.append(penalty)
    return f_mse(penalties, reduction)


def fill_absent(centers, channels, absent):
    """``zero``: classes without a pixel have a zero center; ``exclude``: they take no part."""
    if absent == "exclude":
        return centers
    return [torch.zeros(channels, dtype=torch.float64) if c is None else c for c in centers]


def car_losses(
    feature,
    labels,
    num_classes,
    ignore_value,
    *,
    centers="batch",
    stored=None,
    ema_decay=0.9,
    eps_c2c=0.5,
    eps_c2p=0.25,
    scale_c2p=True,
    absent_classes="exclude",
    detach_centers=True,
    reduction="mse",
):
    """All three losses of ``feature (N, C, h, w)`` and ``labels (N, h, w)``.

    ``stored`` are the moving averages before the step: a list of centers or None, by class.
    """
    channels = feature.shape[1]
    images = [list(image.flatten(1).T) for image in feature]
    ids = [[None if y == ignore_value else int(y) for y in label.flatten().tolist()] for label in labels]
    if centers == "image":
        center_sets = [centers_of(x, y, num_classes) for x, y in zip(images, ids, strict=True)]
        per_image = center_sets
    else:
        batch = centers_of(sum(images, []), sum(ids, []), num_classes)
        if centers == "ema":
            stored = stored or [None] * num_classes
            batch = [
                old if new is None else new if old is None else ema_decay * old + (1 - ema_decay) * new
                for old, new in zip(stored, batch, strict=True)
            ]
        center_sets, per_image = [batch], [batch] * len(images)
    return {
        "intra_c2p": intra_c2p(images, ids, per_image, detach_centers, reduction),
        "inter_c2c": inter_c2c(
            center_sets, num_classes, channels, eps_c2c, absent_classes, detach_centers, reduction
        ),
        "inter_c2p": inter_c2p(
            images,
            ids,
            per_image,
            num_classes,
            channels,
            eps_c2p,
            scale_c2p,
            absent_classes,
            detach_centers,
            reduction,
        ),
    }
