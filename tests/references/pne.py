"""PNE's equations as slow loops in float64, written from the paper (Eq. 1, 8, 9; sections 3.2 and 3.3).

Every population is taken whole: the reference holds where the number of samples equals the number of
pixels of each class that is drawn from, and no set has more anchors than are kept.
"""

import math

import torch


def is_valid(label, num_classes):
    return 0 <= label < num_classes


def right_pixels(pool, k):
    """i_{k,k}: pixels of class k that are predicted as k."""
    return [pixel for pixel in pool if pixel["label"] == k and pixel["prediction"] == k]


def anchor_sets(pool, num_classes, individual):
    """S_{l,k} (section 3.3.1), or their union over l; each with its class k and its predictions l."""
    sets = {}
    for pixel in pool:
        k, prediction = pixel["label"], pixel["prediction"]
        if is_valid(k, num_classes) and k != prediction:
            members = sets.setdefault((k, prediction) if individual else (k,), [])
            members.append(pixel)
    return [(key[0], {p["prediction"] for p in members}, members) for key, members in sets.items()]


def negatives_of(pool, k, predictions, num_classes, corresponding):
    """N_{l,l} (section 3.3.2), or the right pixels of all classes but k."""
    classes = predictions if corresponding else set(range(num_classes)) - {k}
    return [pixel for c in sorted(classes) for pixel in right_pixels(pool, c)]


def eq8(i, positives, negatives, weights, tau, negative_scale):
    mean_weight = sum(weights) / len(weights)
    above = sum(math.exp(1.0) ** ((i * n).sum() / tau) for n in negatives) * negative_scale
    below = sum(
        w / mean_weight * math.exp(1.0) ** ((i * p).sum() / tau)
        for p, w in zip(positives, weights, strict=True)
    )
    return torch.log(1 + above / below)


def eq1(i, positives, negatives, tau, negative_scale):
    against = sum(torch.exp((i * n).sum() / tau) for n in negatives) * negative_scale
    terms = []
    for p in positives:
        own = torch.exp((i * p).sum() / tau)
        terms.append(-torch.log(own / (own + against)))
    return sum(terms) / len(terms)


def pne_loss(
    embeddings,
    logits,
    labels,
    *,
    num_samples,
    temperature=1.0,
    scope="image",
    positive_weights="softmax",
    contrast="pne",
    individual_anchor_sets=True,
    corresponding_negatives=True,
    no_negatives="skip",
    detach_samples=True,
):
    """Eq. 9 of ``embeddings (N, C, h, w)``, ``logits (N, K, h, w)``, ``labels (N, h, w)``.

    Returns the loss, the number of anchors with a positive and a negative, and the number of their sets.
    """
    num_classes = logits.shape[1]
    images = []
    for x, y, label in zip(embeddings, logits, labels, strict=True):
        image = []
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                vector, scores = x[:, row, column], y[:, row, column].detach()
                prediction = int(scores.argmax())
                top, total = scores[prediction], torch.exp(scores).sum()
                weight = {"softmax": torch.exp(top) / total, "logit": top.clamp(min=1e-300), "none": 1.0}
                unit = vector / (vector * vector).sum().sqrt()
                image.append(
                    {
                        "anchor": unit,
                        "sample": unit.detach() if detach_samples else unit,
                        "label": int(label[row, column]),
                        "prediction": prediction,
                        "weight": weight[positive_weights],
                    }
                )
        images.append(image)
    pools = images if scope == "image" else [sum(images, [])]
    losses, num_sets, num_without = [], 0, 0
    for pool in pools:
        for k, predictions, anchors in anchor_sets(pool, num_classes, individual_anchor_sets):
            positives = right_pixels(pool, k)
            if not positives:
                continue
            negatives = negatives_of(pool, k, predictions, num_classes, corresponding_negatives)
            if not negatives and no_negatives != "anchors":
                # The sum over no negative is 0 and so is log(1 + 0) (Eq. 9), or -log(p / (p + 0)) (Eq. 1);
                # |S| counts the pixels that are predicted wrong.
                if no_negatives == "skip":
                    losses += [(0 * anchor["anchor"]).sum() for anchor in anchors]
                    num_without += len(anchors)
                continue
            negatives = negatives or anchors
            # |N| = |P|: fewer negatives count as much as num_samples of them.
            scale = num_samples / len(negatives)
            num_sets += 1
            for anchor in anchors:
                chosen = (
                    anchor["anchor"],
                    [p["sample"] for p in positives],
                    [n["sample"] for n in negatives],
                )
                if contrast == "asymmetric":
                    losses.append(eq1(*chosen, temperature, scale))
                else:
                    weights = [p["weight"] for p in positives]
                    loss = eq8(*chosen, weights, temperature, scale * len(positives) / num_samples)
                    losses.append(loss)
    total = sum(losses) / len(losses) if losses else (embeddings * 0).sum()
    return total, len(losses) - num_without, num_sets
