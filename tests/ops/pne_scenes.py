"""Small label maps and predictions with chosen numbers of right pixels of each class."""

import torch
from torch import nn

from regseg_d2.regularizers import PNE, RegularizerInput

NUM_CLASSES, CHANNELS, SIZE = 4, 6, (6, 7)
VOID = 255


def make_maps(right, wrong, seed):
    """Labels and predictions ``(h, w)``: ``right[k]`` right pixels of class k, ``wrong[k, l]`` seen as l."""
    labels, predictions = [], []
    for k, count in enumerate(right):
        labels += [k] * count
        predictions += [k] * count
    for (k, l), count in wrong.items():  # noqa: E741  the paper's letter
        labels += [k] * count
        predictions += [l] * count
    rest = SIZE[0] * SIZE[1] - len(labels)
    assert rest >= 0
    generator = torch.Generator().manual_seed(seed)
    labels += [VOID] * rest
    predictions += torch.randint(0, NUM_CLASSES, (rest,), generator=generator).tolist()
    order = torch.randperm(len(labels), generator=generator)
    return torch.tensor(labels)[order].view(SIZE), torch.tensor(predictions)[order].view(SIZE)


def make_batch(images, seed=0, same_within_class=False):
    """Embeddings, logits ``(N, ., h, w)`` in float64 and labels of images given as ``(right, wrong)``.

    ``same_within_class``: the right pixels of a class all have the same embedding and logits.
    """
    maps = [make_maps(right, wrong, seed + index) for index, (right, wrong) in enumerate(images)]
    labels = torch.stack([label for label, _ in maps])
    predictions = torch.stack([prediction for _, prediction in maps])
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(images), CHANNELS, *SIZE, dtype=torch.float64, generator=generator)
    logits = torch.randn(len(images), NUM_CLASSES, *SIZE, dtype=torch.float64, generator=generator)
    top = 2 + torch.rand(len(images), 1, *SIZE, dtype=torch.float64, generator=generator)
    logits = logits.scatter(1, predictions.unsqueeze(1), logits.amax(1, keepdim=True) + top)
    if same_within_class:
        for k in range(NUM_CLASSES):
            chosen = ((labels == k) & (predictions == k)).unsqueeze(1)
            one = torch.randn(1, CHANNELS, 1, 1, dtype=torch.float64, generator=generator)
            embeddings = torch.where(chosen, one, embeddings)
            scores = torch.zeros(1, NUM_CLASSES, 1, 1, dtype=torch.float64)
            scores[0, k] = 3.0
            logits = torch.where(chosen, scores, logits)
    return embeddings.requires_grad_(True), logits, labels


def make_pne(seed=0, **options):
    """A PNE that takes the feature itself for the embeddings."""
    options = {"weights": {"contrast": 1.0}, "embedding_channels": 4} | options
    regularizer = PNE(NUM_CLASSES, CHANNELS, seed=seed, feature_tap="x", **options)
    regularizer.projection = nn.Identity()
    return regularizer.double()


def inputs_of(embeddings, logits, labels):
    return RegularizerInput({"x": embeddings, "logits": logits}, labels, NUM_CLASSES)
