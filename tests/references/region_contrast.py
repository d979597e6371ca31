"""RegionContrast's equations as slow loops, written from the paper (ICCV 2021, Eq. 2 to 4).

Stored region centers are ``{class: [unit vector, ...]}``.
"""

import math

import torch


def softmax_of(logits):
    """Probabilities of one pixel."""
    top = max(logits)
    exponentials = [math.exp(value - top) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def region_center(pixels, labels, probabilities, class_id, mode):
    """``R_i`` of one image, not normalised; None where the image shows no region of the class.

    ``pixels`` are feature vectors, ``labels`` ids or None (void), ``probabilities`` lists over classes.
    """
    total, count = 0, 0
    for x, y, p in zip(pixels, labels, probabilities, strict=True):
        predicted = p.index(max(p))
        if y is None or (predicted if mode == "predicted" else y) != class_id:
            continue
        count += 1
        easy = mode == "dynamic" and predicted == class_id
        total = total + (1.0 - p[predicted] if easy else 1.0) * x
    return total / count if count else None


def region_centers(feature, labels, logits, num_classes, ignore_value, mode):
    """Unit centers by image: a list of ``{class: vector}``."""
    result = []
    for x, y, z in zip(feature, labels, logits, strict=True):
        pixels = list(x.flatten(1).T)
        ids = [None if i == ignore_value else i for i in y.flatten().tolist()]
        probabilities = [softmax_of(pixel) for pixel in z.flatten(1).T.tolist()]
        centers = {}
        for k in range(num_classes):
            center = region_center(pixels, ids, probabilities, k, mode)
            if center is not None:
                centers[k] = center / (center * center).sum().sqrt()
        result.append(centers)
    return result


def region_loss(query, class_id, stored, temperature):
    """Eq. 4 of one region; None without a positive."""
    positives = stored.get(class_id, [])
    if not positives:
        return None
    negatives = [k for other, rows in stored.items() if other != class_id for k in rows]
    terms = []
    for positive in positives:
        pull = torch.exp((query * positive).sum() / temperature)
        push = sum(torch.exp((query * k).sum() / temperature) for k in negatives)
        terms.append(-torch.log(pull / (pull + push)))
    return sum(terms) / len(terms)


def region_contrast_loss(centers, stored, temperature, reduction="mean"):
    """Eq. 4 over regions; with ``stored`` None the other regions of the batch are the samples.

    ``reduction``: the ``"mean"`` over regions, or ``"class_sum"``: the sum over classes of the means over the
    regions of a class.
    """
    losses = []
    for image, regions in enumerate(centers):
        for class_id, query in regions.items():
            samples = stored
            if samples is None:
                samples = {}
                for other_image, others in enumerate(centers):
                    for k, center in others.items():
                        if (other_image, k) != (image, class_id):
                            samples.setdefault(k, []).append(center.detach())
            loss = region_loss(query, class_id, samples, temperature)
            if loss is not None:
                losses.append((class_id, loss))
    if not losses:
        return torch.zeros((), dtype=torch.float64)
    if reduction == "mean":
        return sum(loss for _, loss in losses) / len(losses)
    total = 0
    for k in {class_id for class_id, _ in losses}:
        own = [loss for class_id, loss in losses if class_id == k]
        total = total + sum(own) / len(own)
    return total


def store(stored, centers, bank_size):
    """Adds the centers of a step, image by image, and drops the oldest of a class that has too many."""
    for regions in centers:
        for k, center in regions.items():
            stored.setdefault(k, []).append(center.detach())
    for rows in stored.values():
        del rows[: max(0, len(rows) - bank_size)]
