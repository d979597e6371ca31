"""RCH's equations as slow loops in float64, written from the paper (AAAI 2022, Eq. 2 to 8).

Pixels of a batch are a flat list of embeddings ``(D,)`` with a list of class ids; void is None, and a list of
the images that they are of.
"""

import torch


def sets_of_class(k, labels, predicted):
    """Eq. 3: numbers of the TP, FN and FP pixels of class k; void pixels are in no set."""
    pixels = [i for i, y in enumerate(labels) if y is not None]
    tp = [i for i in pixels if labels[i] == k and predicted[i] == k]
    fn = [i for i in pixels if labels[i] == k and predicted[i] != k]
    fp = [i for i in pixels if labels[i] != k and predicted[i] == k]
    return tp, fn, fp


def cosine(a, b):
    """Eq. 5; a vector without length has no direction."""
    lengths = a.norm() * b.norm()
    return (a * b).sum() / lengths if float(lengths.detach()) > 0 else (a * b).sum()


def prototypes_of(pixels, labels, predicted, stored, decay, source, detach):
    """Eq. 4, from the TP pixels or from all pixels of a class; None for a class without."""
    prototypes = []
    for k, old in enumerate(stored):
        tp, fn, _ = sets_of_class(k, labels, predicted)
        members = tp if source == "tp" else tp + fn
        if not members:
            prototypes.append(old)
            continue
        new = sum(pixels[i] for i in members) / len(members)
        new = new.detach() if detach else new
        prototypes.append(new if old is None else decay * old + (1 - decay) * new)
    return prototypes


def mean_cosine(i, members, pixels):
    """The means in Eq. 6 and 7, pair by pair."""
    return sum(cosine(pixels[j], pixels[i]) for j in members) / len(members)


def term(own, others):
    """One of the two terms of Eq. 8."""
    return -torch.log(torch.exp(own) / (torch.exp(own) + sum(torch.exp(value) for value in others)))


def pixel_losses(
    pixels,
    labels,
    predicted,
    probability,
    prototypes,
    images,
    *,
    temperature,
    scale,
    fp_penalty,
    fn_compensation,
    errors,
):
    """Eq. 6 to 8: loss, phi and psi of each pixel, None for a void pixel."""
    results = []
    for i, k in enumerate(labels):
        if k is None:
            results.append(None)
            continue
        _, fn, fp = sets_of_class(k, labels, predicted)
        if errors == "image":
            # "Groups the pixels of the input image into three sets".
            fn, fp = ([j for j in members if images[j] == images[i]] for members in (fn, fp))
        psi = 1 + mean_cosine(i, fp, pixels) if fp and fp_penalty else 0.0
        phi = 1 - mean_cosine(i, fn, pixels) if fn and fn_compensation else 0.0
        loss = 0.0 * pixels[i].sum()
        if prototypes[k] is not None:
            cosines = {
                c: cosine(prototypes[c], pixels[i]) / temperature
                for c in range(len(prototypes))
                if prototypes[c] is not None
            }
            others = [value for c, value in cosines.items() if c != k]
            weight = scale * (1 - probability[i])
            loss = term(cosines[k] - weight * phi, others) + term(cosines[k] - weight * psi, others)
        results.append((loss, phi, psi))
    return results


def rch_loss(
    embeddings,
    logits,
    labels,
    ignore_value,
    *,
    stored=None,
    learned=None,
    prototypes="tp",
    ema_decay=0.9,
    temperature=0.5,
    calibration_scale=1.0,
    fp_penalty=True,
    fn_compensation=True,
    errors="image",
    detach_prototypes=False,
):
    """The mean of Eq. 8 over valid pixels, and the prototypes of Eq. 4 after the step.

    ``embeddings (N, D, h, w)``, ``logits (N, K, h, w)``, ``labels (N, h, w)``. ``stored`` are the
    prototypes before the step, one or None for each class; ``learned`` are parameters ``(K, D)``.
    """
    num_classes = logits.shape[1]
    pixels = [pixel for image in embeddings for pixel in image.flatten(1).T]
    images = [n for n, image in enumerate(labels) for _ in image.flatten()]
    scores = [pixel.detach() for image in logits for pixel in image.flatten(1).T]
    ids = [None if y == ignore_value else int(y) for y in labels.flatten().tolist()]
    predicted = [int(score.argmax()) for score in scores]
    probability = [
        None if y is None else (torch.exp(score[y]) / torch.exp(score).sum())
        for score, y in zip(scores, ids, strict=True)
    ]
    if prototypes == "learned":
        centers = list(learned)
    else:
        stored = stored or [None] * num_classes
        centers = prototypes_of(pixels, ids, predicted, stored, ema_decay, prototypes, detach_prototypes)
    results = pixel_losses(
        pixels,
        ids,
        predicted,
        probability,
        centers,
        images,
        temperature=temperature,
        scale=calibration_scale,
        fp_penalty=fp_penalty,
        fn_compensation=fn_compensation,
        errors=errors,
    )
    valid = [loss for loss, _, _ in filter(None, results)]
    return sum(valid) / len(valid), centers
