"""MDRL's equations as slow loops in float64, written from the paper (section 3.2 to 3.5).

Pixels are a list of vectors ``(Z,)`` of the whole batch, labels a list of ids, None is void. A memory is a
list over classes: None for a class without distributions, else a list of N vectors.
"""

import math

import torch


def unit(vector):
    """The vector at length 1; a zero stays."""
    length = math.sqrt(float((vector.detach() ** 2).sum()))
    if length <= 1e-6:
        return vector * 0.0
    return vector / (vector**2).sum().sqrt()


def cosine(a, b):
    return (unit(a) * unit(b)).sum()


def sinkhorn(similarities, smoothness, iterations):
    """Eq. 6 and 7 of one class: ``similarities[m][n]`` of M pixels to N distributions, shares alike.

    Rows (distributions) are scaled to sums of M / N, then columns (pixels) to sums of 1.
    """
    num_pixels, num_distributions = len(similarities), len(similarities[0])
    shares = [[math.exp(s / smoothness) for s in row] for row in similarities]
    for _ in range(iterations):
        for n in range(num_distributions):
            total = sum(shares[m][n] for m in range(num_pixels))
            for m in range(num_pixels):
                shares[m][n] *= num_pixels / num_distributions / total
        for m in range(num_pixels):
            total = sum(shares[m])
            shares[m] = [share / total for share in shares[m]]
    return shares


def started_memory(memory, pixels, labels, directions):
    """The memory with a start for each class that is new: mean of its pixels plus a fixed direction."""
    result = list(memory)
    for k in range(len(memory)):
        members = [x.detach() for x, y in zip(pixels, labels, strict=True) if y == k]
        if memory[k] is None and members and float(sum(members).norm()) > 1e-6:
            mean = unit(sum(members))
            result[k] = [unit(mean + direction) for direction in directions]
    return result


def assignments(memory, pixels, labels, smoothness, iterations):
    """Number of the distribution that each pixel is assigned to, None where its class has none."""
    result = [None] * len(pixels)
    for k, distributions in enumerate(memory):
        members = [m for m, y in enumerate(labels) if y == k]
        if distributions is None or not members:
            continue
        table = [[float(cosine(pixels[m].detach(), d)) for d in distributions] for m in members]
        for m, row in zip(members, sinkhorn(table, smoothness, iterations), strict=True):
            result[m] = max(range(len(row)), key=lambda n: row[n])
    return result


def updated_memory(memory, counts, pixels, labels, assigned, momentum):
    """Eq. 8; ``counts[k][n]`` steps in which a distribution had pixels, changed in place."""
    result = [None if d is None else list(d) for d in memory]
    for k, distributions in enumerate(memory):
        for n in range(len(distributions or [])):
            members = [
                unit(x.detach())
                for x, y, a in zip(pixels, labels, assigned, strict=True)
                if y == k and a == n
            ]
            if not members or float(sum(members).norm()) <= 1e-6:
                continue
            mean = unit(sum(members))
            new = mean if counts[k][n] == 0 else momentum * distributions[n] + (1 - momentum) * mean
            result[k][n] = unit(new)
            counts[k][n] += 1
    return result


def local_loss(memory, pixels, labels):
    """Eq. 12 to 14, mean over pixels whose class has distributions."""
    losses = []
    for x, y in zip(pixels, labels, strict=True):
        if y is None or memory[y] is None:
            continue
        # -s_{i,c}: the largest cosine.
        nearest = [
            None if d is None else max((cosine(x, v) for v in d), key=lambda s: float(s.detach()))
            for d in memory
        ]
        total = sum(torch.exp(s) for s in nearest if s is not None)
        losses.append(-torch.log(torch.exp(nearest[y]) / total))
    return sum(losses) / len(losses) if losses else torch.zeros((), dtype=torch.float64)


def global_loss(memory, pixels, labels, temperature):
    """Eq. 15, mean over pixels whose class has distributions."""
    losses = []
    for x, y in zip(pixels, labels, strict=True):
        if y is None or memory[y] is None:
            continue
        positives = sum(torch.exp(cosine(x, d) / temperature) for d in memory[y])
        negatives = torch.zeros((), dtype=torch.float64)
        for k, distributions in enumerate(memory):
            if k != y and distributions is not None:
                negatives = negatives + sum(torch.exp(cosine(x, d) / temperature) for d in distributions)
        losses.append(-torch.log(positives / (positives + negatives)))
    return sum(losses) / len(losses) if losses else torch.zeros((), dtype=torch.float64)


def voted_maps(probabilities, memory):
    """Eq. 9 at one pixel: N vectors; ``probabilities`` ``(K,)``. A class without distributions adds none."""
    num_distributions = next(len(d) for d in memory if d is not None)
    channels = next(len(d[0]) for d in memory if d is not None)
    maps = []
    for n in range(num_distributions):
        voted = torch.zeros(channels, dtype=torch.float64)
        for k, distributions in enumerate(memory):
            if distributions is not None:
                voted = voted + probabilities[k] * distributions[n]
        maps.append(voted)
    return maps


def attention(queries, keys, values):
    """Eq. 10 and the product of Eq. 11 in one image; lists of vectors of Z / 2 channels."""
    scale = math.sqrt(len(queries[0]))
    result = []
    for q in queries:
        products = [float((q * k).sum().detach()) / scale for k in keys]
        top = max(products)
        weights = [math.exp(p - top) for p in products]
        result.append(sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True)))
    return result
