"""The figures of a study: which ones there are, and what goes into each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from regseg_d2.apps.explore.gallery import Choice, Gallery
from regseg_d2.apps.explore.page.content import PageImage
from regseg_d2.apps.explore.study import Explored, Study
from regseg_d2.drawing.figures.bars import class_scores
from regseg_d2.drawing.figures.curves import curve_groups, learning_curves
from regseg_d2.drawing.figures.distributions import (
    calibration_diagram,
    image_scores,
    intra_inter_ratios,
    score_distributions,
)
from regseg_d2.drawing.figures.heat_maps import PixelRelations, calibration_maps, relation_maps
from regseg_d2.drawing.figures.maps import ShownImage, error_maps, prediction_maps, roomiest
from regseg_d2.drawing.figures.matrix import confusion_matrices, similarity_matrices
from regseg_d2.drawing.figures.scatter import projections
from regseg_d2.evaluation.looking import relations
from regseg_d2.evaluation.looking.views import cell_at

METHOD_NAMES = {"tsne": "t-SNE", "pca": "PCA", "umap": "UMAP"}
# Images, or pixels, in a row each of one figure.
ROWS = 4
# Classes with a row of their own among the distributions of scores.
SCORE_CLASSES = 3


class Drawn(NamedTuple):
    """A figure.

    Attributes:
        name: of its files, without suffix.
        caption: what it shows, and whose figure it is like.
    """

    name: str
    caption: str
    figure: Figure


def draw_all(study: Study, gallery: Gallery, choice: Choice) -> Iterator[Drawn]:
    """Draws all figures, one after the other."""
    yield from _of_classes(study)
    yield from _of_features(study)
    yield from _of_scores(study)
    yield from _of_training(study)
    yield from _of_images(study, gallery, choice)


def _of_classes(study: Study) -> Iterator[Drawn]:
    names = study.classes
    groups = study.seeds()
    iou = {name: np.stack([each.findings.metrics.iou for each in group]) for name, group in groups.items()}
    yield Drawn("class_iou", "IoU of each class, with intervals over seeds", class_scores(iou, names))
    boundary = {name: np.stack([each.findings.boundary_iou for each in g]) for name, g in groups.items()}
    yield Drawn(
        "boundary_iou",
        "Boundary IoU of each class (Cheng et al., CVPR 2021): how well outlines fit",
        class_scores(boundary, names, "Boundary IoU (%)"),
    )
    confusions = study.of_each(lambda each: each.findings.confusion)
    yield Drawn(
        "confusion", "What pixels of each class were taken for", confusion_matrices(confusions, names)
    )


def _of_features(study: Study) -> Iterator[Drawn]:
    names = study.classes
    for name, caption, quantity, read in (
        (
            "class_dependency",
            "Dot products of class centers (CAR, Figure 4)",
            "dot product of class centers",
            lambda found: relations.dependency_map(found.centers),
        ),
        (
            "class_dependency_cosine",
            "The same whatever the length of features: cosines of class centers",
            "cosine of class centers",
            lambda found: relations.cosine_matrix(found.centers),
        ),
        (
            "pixel_cosines",
            "Mean cosine of a pixel of one class and a pixel of another (RCH, Figure 6)",
            "mean cosine of pixels",
            lambda found: relations.mean_cosines(found.unit_sums, found.center_counts),
        ),
    ):
        matrices = {each.name: read(each.findings) for each in study.explored}
        yield Drawn(name, caption, similarity_matrices(matrices, names, quantity))
    yield Drawn(
        "intra_inter",
        "How wide each class is for its distance to the others",
        intra_inter_ratios(study.of_each(lambda each: each.ratios), names),
    )
    for method in study.options.projections:
        yield from _projections(study, method)


def _projections(study: Study, method: str) -> Iterator[Drawn]:
    called, first = METHOD_NAMES[method], study.explored[0].findings
    labels = first.pixel_label[study.pixels]
    predicted = study.of_each(lambda each: each.findings.pixel_predicted[study.pixels])
    positions = dict(zip(predicted, study.pixel_projections[method], strict=True))
    draw = {"names": study.classes, "colors": study.colors, "method": called}
    yield Drawn(
        f"pixels_{method}",
        f"{called} of pixels, wrong ones marked (PNE, Figures 1, 5 and 6; MDRL, Figure 1; RCH, Figure 6)",
        projections(positions, labels, predicted=predicted, **draw),
    )
    right = np.all([classes == labels for classes in predicted.values()], axis=0)
    if right.any():
        yield Drawn(
            f"pixels_right_{method}",
            f"{called} of the pixels that every network has right (PNE, Figure 1 a)",
            projections({run: xy[right] for run, xy in positions.items()}, labels[right], **draw),
        )
    positions = dict(zip(predicted, study.region_projections[method], strict=True))
    yield Drawn(
        f"regions_{method}",
        f"{called} of region centers: the mean feature of a class in an image (RegionContrast, Figure 3)",
        projections(positions, first.region_label[study.regions], what="region centers", **draw),
    )


def _of_scores(study: Study) -> Iterator[Drawn]:
    scores = study.of_each(lambda each: (each.findings.score_edges, each.findings.score_counts))
    iou = np.stack([each.findings.metrics.iou for each in study.explored]).mean(axis=0)
    worst = [int(k) for k in np.argsort(iou)[:SCORE_CLASSES] if not np.isnan(iou[k])]
    yield Drawn(
        "scores",
        "Scores of true positives, false positives and false negatives, of all classes and of the worst ones "
        "(RCH, Figure 1)",
        score_distributions(scores, study.classes, worst),
    )
    yield Drawn(
        "calibration",
        "How often a network is right that is so sure",
        calibration_diagram(study.of_each(_calibration)),
    )
    yield Drawn(
        "image_scores",
        "mIoU of single images: the left end is the worst ones",
        image_scores(study.of_each(lambda each: each.image_scores)),
    )


def _calibration(each: Explored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = each.findings
    return found.calibration_pixels, found.calibration_confidence, found.calibration_right


def _of_training(study: Study) -> Iterator[Drawn]:
    curves = study.curves()
    for group, keys in curve_groups(curves).items() if curves else ():
        name = "losses" if group == "losses" else f"diagnostics_{group.rpartition('/')[2]}"
        caption = "Losses while training" if group == "losses" else f"What {group} says while training"
        yield Drawn(name, caption, learning_curves(curves, keys))


def _of_images(study: Study, gallery: Gallery, choice: Choice) -> Iterator[Drawn]:
    K = len(study.classes)
    for name, numbers, caption in (
        ("predictions_worst", choice.worst, "Images that all networks together do worst on"),
        ("predictions_differing", choice.differing, "Images on which the networks differ most"),
        ("predictions_random", choice.random, "Images that were drawn"),
    ):
        shown = [_shown(study, gallery[gallery.numbers.index(number)]) for number in numbers[:ROWS]]
        if shown:
            yield Drawn(name, caption, prediction_maps(shown, study.classes, study.colors))
            errors = name.replace("predictions", "errors")
            yield Drawn(errors, f"{caption}: what is wrong", error_maps(shown, K))
    wrong = (index for index in range(len(gallery)) if _anchor(gallery[index], K) is not None)
    rows = list(islice(wrong, ROWS))
    if rows:
        for name, normalized, caption, quantity in (
            (
                "relations",
                True,
                "Cosine of a wrong pixel and all others (RCH, Figure 1 c)",
                "cosine to the marked pixel",
            ),
            (
                "relations_dot",
                False,
                "Dot product of a wrong pixel and all others (CAR, Figures 5 to 7)",
                "dot product with the marked pixel",
            ),
        ):
            drawn = [_relations(study, gallery, index, normalized=normalized) for index in rows]
            yield Drawn(name, caption, relation_maps(drawn, quantity))
        yield Drawn(
            "calibration_terms",
            "FN compensation φ and FP penalty ψ (RCH, Figure 5), of the feature that the classifier reads",
            _terms(study, gallery, rows[0]),
        )


def _shown(study: Study, image: PageImage) -> ShownImage:
    names = [each.name for each in study.explored]
    return ShownImage(
        image.name,
        image.pixels,
        image.label,
        {name: run.predicted for name, run in zip(names, image.runs, strict=True)},
        {name: run.mean_iou for name, run in zip(names, image.runs, strict=True)},
    )


def _anchor(image: PageImage, num_classes: int) -> tuple[int, int] | None:
    """Pixel in the middle of the largest part that the first network has wrong; None if all is right."""
    valid = (image.label >= 0) & (image.label < num_classes)
    return roomiest(valid & (image.runs[0].predicted != image.label), 0.0)


def _relations(study: Study, gallery: Gallery, index: int, *, normalized: bool) -> PixelRelations:
    image = gallery[index]
    anchor = _anchor(image, len(study.classes))
    assert anchor is not None  # of images that have one
    maps, sizes = {}, {}
    for position, each in enumerate(study.explored):
        feature, _, _ = gallery.cells(index, position)
        cell_size = image.runs[position].cell_size
        sides = zip(anchor, cell_size, feature.shape[1:], strict=True)
        row, column = (cell_at(*side) for side in sides)
        maps[each.name] = relations.relation_map(feature, (row, column), normalized)
        sizes[each.name] = cell_size
    label = study.classes[int(image.label[anchor])]
    taken = study.classes[int(image.runs[0].predicted[anchor])]
    # The pixel's center.
    point = anchor[0] + 0.5, anchor[1] + 0.5
    return PixelRelations(f"{label}, taken for {taken}", image.pixels, image.label, point, maps, sizes)


def _terms(study: Study, gallery: Gallery, index: int) -> Figure:
    image, names = gallery[index], [each.name for each in study.explored]
    terms = [relations.calibration_maps(*gallery.cells(index, position)) for position in range(len(names))]
    return calibration_maps(
        image.pixels,
        image.label,
        {name: run.predicted for name, run in zip(names, image.runs, strict=True)},
        {name: phi for name, (phi, _) in zip(names, terms, strict=True)},
        {name: psi for name, (_, psi) in zip(names, terms, strict=True)},
        {name: run.cell_size for name, run in zip(names, image.runs, strict=True)},
        len(study.classes),
    )
