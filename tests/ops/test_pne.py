"""What PNE draws: from the right pixels only, without repeats where there are enough, and evenly."""

from collections import Counter

import pytest
import torch

from regseg_d2.ops import pne
from regseg_d2.state.random_stream import RandomStream
from tests.ops.pne_scenes import NUM_CLASSES, VOID, inputs_of, make_batch, make_pne

STEPS = 300
S, MAX = 3, 4
# 11 right pixels of class 0, 2 of class 1 (fewer than S), 7 of class 2, none of class 3.
IMAGES = [
    ((11, 2, 7, 0), {(0, 1): 9, (1, 0): 2, (2, 3): 6, (0, 2): 3}),
    ((3, 8, 0, 0), {(0, 1): 1, (1, 0): 6, (1, 2): 8, (3, 0): 5}),
]


def draw(labels, predictions, how, stream):
    num_images, num_pixels = labels.shape
    num_pools = how.num_pools(num_images)
    bits = pne.RandomBits(
        anchors=stream.bits(0, num_images, num_pixels),
        samples=stream.bits(1, num_images, num_pixels),
        repeats=stream.bits(2, num_pools, NUM_CLASSES * how.num_samples).view(-1, how.num_samples),
        union_repeats=stream.bits(3, num_pools, NUM_CLASSES * how.num_samples).view(-1, how.num_samples),
    )
    return pne.draw_pixels(torch.where(labels == VOID, -1, labels), predictions, how, bits)


def draws(seed=0, **options):
    """Draws of many steps, with the labels and predictions of the numbered pixels."""
    options = {"no_negatives": "anchors", **options}
    _, logits, labels = make_batch(IMAGES)
    labels, predictions = labels.flatten(1), logits.argmax(1).flatten(1)
    how = pne.Construction(NUM_CLASSES, S, MAX, **options)
    stream = RandomStream(seed)
    result = []
    for _ in range(STEPS):
        result.append(draw(labels, predictions, how, stream))
        stream.advance()
    return result, labels.flatten().tolist(), predictions.flatten().tolist()


def pool_of(pixel, scope):
    return pixel // 42 if scope == "image" else 0


def right_pixels(labels, predictions, scope, pool, k):
    return {
        pixel
        for pixel, (label, prediction) in enumerate(zip(labels, predictions, strict=True))
        if label == prediction == k and pool_of(pixel, scope) == pool
    }


def assert_even(counts, members, total):
    """Each member was drawn about equally often: within 5 standard deviations of a binomial."""
    assert set(counts) == members
    share = 1 / len(members)
    expected = total * share
    deviation = max(abs(counts[m] - expected) for m in members)
    assert deviation < 5 * (total * share * (1 - share)) ** 0.5 + 1e-9


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_positives_and_negatives_are_right_pixels_of_their_class(scope):
    result, labels, predictions = draws(scope=scope)
    drawn = {}
    for one in result:
        for anchor, positives, negatives in zip(one.anchors, one.positives, one.negatives, strict=True):
            anchor = anchor.item()
            k, found, pool = labels[anchor], predictions[anchor], pool_of(anchor, scope)
            assert k != found
            for slot, of_class in ((positives, k), (negatives, found)):
                members = right_pixels(labels, predictions, scope, pool, of_class)
                if slot < 0:
                    assert not members
                    continue
                sample = one.samples[slot].tolist()
                assert set(sample) <= members
                if len(members) >= S:
                    assert len(set(sample)) == S
                drawn[pool, of_class] = sorted(members)
    for (pool, of_class), members in drawn.items():
        counts, total = Counter(), 0
        for one in result:
            for sample in one.samples.tolist():
                if sample[0] in members:
                    counts.update(sample)
                    total += S
        assert total == STEPS * S, (pool, of_class)
        assert_even(counts, set(members), total)


@pytest.mark.parametrize("individual", [True, False])
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_anchors_are_wrong_pixels_evenly_drawn_from_each_set(individual, scope):
    result, labels, predictions = draws(individual_anchor_sets=individual, scope=scope)
    sets = {}
    for pixel, (k, found) in enumerate(zip(labels, predictions, strict=True)):
        pool = pool_of(pixel, scope)
        if k < NUM_CLASSES and k != found and right_pixels(labels, predictions, scope, pool, k):
            sets.setdefault((pool, k, found) if individual else (pool, k), set()).add(pixel)
    for one in result:
        assert one.counted.all()
        anchors = one.anchors.tolist()
        assert len(set(anchors)) == len(anchors)
        for members in sets.values():
            assert len(members & set(anchors)) == min(len(members), MAX)
        assert sum(min(len(members), MAX) for members in sets.values()) == len(anchors)
        assert one.first_of_set.sum() == len(sets)
    assert max(len(members) for members in sets.values()) > MAX
    counts = Counter(pixel for one in result for pixel in one.anchors.tolist())
    for members in sets.values():
        total = STEPS * min(len(members), MAX)
        assert_even({pixel: counts[pixel] for pixel in members}, members, total)


@pytest.mark.parametrize(("individual", "corresponding"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_negatives_of_several_classes_are_drawn_evenly_from_all_of_them(individual, corresponding, scope):
    options = {"individual_anchor_sets": individual, "corresponding_negatives": corresponding}
    result, labels, predictions = draws(scope=scope, **options)
    wrong = [(k, f, pool_of(p, scope)) for p, (k, f) in enumerate(zip(labels, predictions, strict=True))]
    counts, population = {}, {}
    for one in result:
        seen = set()
        for anchor, slot in zip(one.anchors.tolist(), one.negatives.tolist(), strict=True):
            k, pool = labels[anchor], pool_of(anchor, scope)
            found = {f for label, f, other in wrong if label == k and other == pool and f != k}
            classes = found if corresponding else set(range(NUM_CLASSES)) - {k}
            members = set().union(
                *(right_pixels(labels, predictions, scope, pool, c) for c in sorted(classes))
            )
            if slot < 0:
                assert not members
                continue
            sample = one.samples[slot].tolist()
            assert set(sample) <= members
            assert len(set(sample)) == S or len(members) < S
            if (pool, k) not in seen:
                seen.add((pool, k))
                counts.setdefault((pool, k), Counter()).update(sample)
                population[pool, k] = members
    assert any(len({labels[m] for m in members}) > 1 for members in population.values())
    for key, members in population.items():
        assert_even(counts[key], members, STEPS * S)


def test_anchors_of_a_set_without_negatives_are_numbered_in_it():
    result, labels, predictions = draws()
    crowded = 0
    for one in result[:20]:
        members = {}
        for anchor, place in zip(one.anchors.tolist(), one.crowd_places.tolist(), strict=True):
            if place == len(one.crowd_sets):
                continue
            key = (pool_of(anchor, "image"), labels[anchor], predictions[anchor])
            members.setdefault(one.crowd_sets[place].item(), []).append(
                (one.crowd_ranks[place].item(), place, key)
            )
        for entries in members.values():
            ranks, places, keys = zip(*sorted(entries), strict=True)
            assert ranks == tuple(range(len(entries)))
            assert places == tuple(range(places[0], places[0] + len(entries)))
            assert len(set(keys)) == 1
        crowded += len(members)
    # (2, 3) of the first image, (1, 2) of the second; (3, 0) has no positive.
    assert crowded == 20 * 2


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_without_a_negative_anchors_are_left_out_and_may_count_in_the_mean(scope):
    numbers = {}
    for no_negatives in pne.NO_NEGATIVES:
        result, labels, predictions = draws(scope=scope, no_negatives=no_negatives)
        numbers[no_negatives] = {(len(one.anchors), one.num_counted.item()) for one in result}
        if no_negatives == "anchors":
            continue
        for one in result[:20]:
            assert len(one.crowd_sets) == 0
            assert (one.negatives >= 0).all()
            for anchor in one.anchors.tolist():
                pool = pool_of(anchor, scope)
                assert right_pixels(labels, predictions, scope, pool, predictions[anchor])
    # Sets of (true, predicted) with positives: at most 4 of (0, 1), (1, 0), (2, 3), (0, 2), and of (0, 1),
    # (1, 0), (1, 2). No pixel is rightly 3, and in the second image none is rightly 2.
    with_negatives = {"image": 4 + 2 + 3 + 1 + 4, "batch": 4 + 4 + 3 + 4}[scope]
    everything = with_negatives + {"image": 4 + 4, "batch": 4}[scope]
    assert numbers == {
        "anchors": {(everything, everything)},
        "skip": {(with_negatives, everything)},
        "exclude": {(with_negatives, with_negatives)},
    }


def test_an_image_gets_the_same_draw_in_any_batch(monkeypatch):
    _, logits, labels = make_batch(IMAGES)
    labels, predictions = labels.flatten(1), logits.argmax(1).flatten(1)
    how = pne.Construction(NUM_CLASSES, S, MAX)
    both = draw(labels, predictions, how, RandomStream(5))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("regseg_d2.state.random_stream.rank", lambda rank=rank: rank)
        parts.append(draw(labels[rank : rank + 1], predictions[rank : rank + 1], how, RandomStream(5)))
    assert torch.equal(both.anchors, torch.cat([parts[0].anchors, parts[1].anchors + 42]))
    assert torch.equal(both.samples, torch.cat([parts[0].samples, parts[1].samples + 42]))


def test_a_crowd_beyond_the_number_of_samples_is_cut_to_it():
    # 8 anchors without negatives, 2 samples: an anchor meets 2 of the 8.
    images = [((2, 0, 0, 0), {(0, 1): 8})]
    embeddings, logits, labels = make_batch(images)
    values = set()
    for seed in range(60):
        regularizer = make_pne(seed=seed, num_samples=2, no_negatives="anchors")
        values.add(round(regularizer(inputs_of(embeddings, logits, labels))["loss_pne_contrast"].item(), 12))
    wrong = (labels == 0) & (logits.argmax(1) == 1)
    right = (labels == 0) & (logits.argmax(1) == 0)
    unit = torch.nn.functional.normalize(embeddings.detach(), dim=1).permute(0, 2, 3, 1)
    anchors, positives = unit[wrong], unit[right]
    weights = logits.softmax(1).amax(1)[right]
    below = ((anchors @ positives.T).exp() * (weights / weights.mean())).sum(1)
    products = (anchors @ anchors.T).exp()
    possible = {
        round(torch.log(1 + (products[:, i] + products[:, j]) / below).mean().item(), 12)
        for i in range(8)
        for j in range(i)
    }
    assert values <= possible
    assert len(values) > 15
