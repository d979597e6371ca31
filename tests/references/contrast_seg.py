"""ContrastSeg as slow loops in float64, written from the paper (ICCV 2021, section 3)."""

import math

import torch


def unit(vector):
    return vector / torch.sqrt((vector * vector).sum())


def info_nce(anchor, positives, negatives, temperature):
    """Supervised InfoNCE of one anchor; None without a positive, zero without a negative."""
    if not positives:
        return None
    negative_sum = sum(torch.exp((anchor * n).sum() / temperature) for n in negatives)
    loss = 0.0
    for p in positives:
        score = torch.exp((anchor * p).sum() / temperature)
        loss = loss - torch.log(score / (score + negative_sum))
    return loss / len(positives)


def mean_loss(losses, temperature, base_temperature):
    """The mean over anchors that have a positive, with the scale of the published code."""
    losses = [loss for loss in losses if loss is not None]
    if not losses:
        return torch.zeros((), dtype=torch.float64)
    return temperature / base_temperature * sum(losses) / len(losses)


def hardest(anchor, samples, fraction, sign):
    """The ``ceil(fraction * n)`` samples of the largest ``sign * cosine``."""
    ordered = sorted(samples, key=lambda s: -sign * float((anchor * s).detach().sum()))
    return ordered[: math.ceil(round(fraction * len(samples), 9))]


def batch_loss(pixels, labels, temperature, base_temperature, fraction=None):
    """Anchors of the batch against each other, where all labelled pixels are anchors.

    ``pixels`` is a list of embeddings, ``labels`` of class ids, None is void. With ``fraction`` the
    positives and negatives of an anchor are the hardest ones only.
    """
    anchors = [(unit(x), y) for x, y in zip(pixels, labels, strict=True) if y is not None]
    losses = []
    for i, (anchor, y) in enumerate(anchors):
        positives = [x for j, (x, k) in enumerate(anchors) if k == y and j != i]
        negatives = [x for x, k in anchors if k != y]
        if fraction is not None:
            positives = hardest(anchor, positives, fraction, -1)
            negatives = hardest(anchor, negatives, fraction, 1)
        losses.append(info_nce(anchor, positives, negatives, temperature))
    return mean_loss(losses, temperature, base_temperature)


def memory_loss(pixels, labels, queues, temperature, base_temperature, fraction=None):
    """All labelled pixels against stored samples: ``queues`` are lists, by class, of lists of vectors."""
    losses = []
    for x, y in zip(pixels, labels, strict=True):
        if y is None:
            continue
        positives = [m for queue in queues for m in queue[y]]
        negatives = [m for queue in queues for k, stored in enumerate(queue) if k != y for m in stored]
        if fraction is not None:
            positives = hardest(unit(x), positives, fraction, -1)
            negatives = hardest(unit(x), negatives, fraction, 1)
        losses.append(info_nce(unit(x), positives, negatives, temperature))
    return mean_loss(losses, temperature, base_temperature)


def region_means(pixels, labels, num_classes):
    """The mean unit embedding of each class of one image, brought to length 1; None for an absent one."""
    means = []
    for k in range(num_classes):
        members = [unit(x) for x, y in zip(pixels, labels, strict=True) if y == k]
        means.append(unit(sum(members) / len(members)) if members else None)
    return means


def anchor_quota(pixel_counts, max_views, max_anchors, min_pixels):
    """Anchors of each (image, class) of the whole batch, from its number of pixels."""
    groups = [n for n in pixel_counts if n >= min_pixels and n > 0]
    views = max(1, min(max_views, max_anchors // len(groups))) if groups else 0
    return [min(n, views) if n >= min_pixels and n > 0 else 0 for n in pixel_counts]
