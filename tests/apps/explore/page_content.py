"""Small content of a page: geometric labels, predictions with mistakes, features of classes and places."""

import numpy as np

from regseg_d2.apps.explore.page.content import ImageOfRun, PageContent, PageImage, PagePixels, PageRun

# Names that end scripts, attributes and tags, and names in other scripts.
HOSTILE_CLASSES = (
    "</script><img src=x onerror=\"globalThis.hacked='class'\">",
    "<b>\"q\"</b> & 'a'",
    "طريق",
    "道路标志",
    "🚗 car",
)
HOSTILE_RUNS = ("<!--<script>globalThis.hacked='run'", "'; globalThis.hacked='quote'; '")
HOSTILE_FILES = (
    "</style><script>globalThis.hacked='file'</script>.png",
    "صورة \u202egnp.png",
    "写真{{ 7 * 7 }}.png",
    "control\x07 and half \udcff.png",
)


def labels_of(size, num_classes, rng):
    """A label (H, W) of rectangles of all classes on the first, with a void border at the top."""
    label = np.zeros(size, np.int64)
    height, width = size
    for k in range(1, num_classes):
        top, left = rng.integers(height // 8, height // 2), rng.integers(0, width * 2 // 3)
        label[top : top + height // 3, left : left + width // 4] = k
    label[: max(1, height // 12)] = -1
    return label


def image_of(name, *, size, stride, num_classes, runs, channels, seed):
    """A PageImage; later runs have fewer mistakes and features that keep to their classes more."""
    rng = np.random.default_rng(seed)
    label = labels_of(size, num_classes, rng)
    smooth = rng.normal(size=(-(-size[0] // 16), -(-size[1] // 16), 3)).repeat(16, 0).repeat(16, 1)
    shade = 110 + 25 * label[..., None] % 120 + 20 * smooth[: size[0], : size[1]]
    pixels = np.clip(shade, 0, 255).astype(np.uint8)
    cells = -(-size[0] // stride), -(-size[1] // stride)
    centers = np.random.default_rng(7).normal(size=(num_classes, channels))
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * stride, end - 1).astype(int)
        for n, end in zip(cells, size, strict=True)
    )
    at_cells = label[rows[:, None], columns]
    made = []
    for run in range(runs):
        wrong = np.zeros(size, bool)
        top = rng.integers(size[0] // 8, size[0] // 2)
        wrong[top : top + size[0] // (3 + 2 * run), : size[1] // (2 + run)] = True
        predicted = np.where(wrong, (np.maximum(label, 0) + 1) % num_classes, np.maximum(label, 0))
        noise = rng.normal(size=(*cells, channels)) * (1.2 - 0.4 * min(run, 2))
        feature = (centers[at_cells] + noise).transpose(2, 0, 1).astype(np.float32)
        ious = ious_of(confusion_of(label, predicted, num_classes))
        mean = float(np.nanmean(ious))
        made.append(ImageOfRun(predicted, ious, mean, feature, (float(stride), float(stride))))
    return PageImage(name, pixels, label, made)


def confusion_of(label, predicted, num_classes):
    """Counts (K, K), [true, predicted]."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (label[label >= 0], predicted[label >= 0]), 1)
    return counts


def ious_of(confusion):
    """IoU in percent (K,) of counts, NaN for classes without a label."""
    right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return np.array(
        [100 * r / (t + p - r) if t else np.nan for r, t, p in zip(right, true, predicted, strict=True)]
    )


def content_of(
    num_images=3,
    *,
    runs=("baseline", "CAR"),
    classes=("road", "sky", "car", "tree"),
    files=None,
    size=(96, 128),
    stride=8,
    channels=16,
    **changes,
):
    """A PageContent, the same from call to call; ``changes`` are fields of it."""
    K, R = len(classes), len(runs)
    files = files or [f"street/{i:03d}.png" for i in range(num_images)]
    options = {"size": size, "stride": stride, "num_classes": K, "runs": R, "channels": channels}
    images = [image_of(name, **options, seed=i) for i, name in enumerate(files)]
    counts = [[confusion_of(one.label, one.runs[r].predicted, K) for one in images] for r in range(R)]
    colors = np.random.default_rng(3).integers(30, 226, (K, 3)).astype(np.uint8)
    return PageContent(
        **{
            "title": f"{' and '.join(runs)} on streets",
            "classes": classes,
            "colors": colors,
            "image_names": [*files, "not/shown.png"],
            "runs": [
                run_of(name, r, np.stack(of_run))
                for r, (name, of_run) in enumerate(zip(runs, counts, strict=True))
            ],
            "images": images,
            "pixels": pixels_of(images, K, R),
            "command": "python tools/explore.py " + " ".join(f"output/{r}" for r in range(R)),
            **changes,
        }
    )


def run_of(name, number, counts):
    """A PageRun of counts (N, K, K) by image."""
    confusion = counts.sum(0)
    order = np.argsort(-counts, axis=0, kind="stable")[:5]
    named = np.where(np.take_along_axis(counts, order, 0) > 0, order, -1).transpose(1, 2, 0)
    pair_images = np.pad(named, ((0, 0), (0, 0), (0, 5 - named.shape[2])), constant_values=-1)
    ious = ious_of(confusion)
    metrics = {"mIoU": float(np.nanmean(ious)), "pACC": 100 * np.trace(confusion) / confusion.sum()}
    config = {"MODEL.REGULARIZERS.NAMES": f"[{name if number else ''}]", "SEED": str(number)}
    return PageRun(name, config, metrics, confusion, pair_images)


def pixels_of(images, num_classes, runs, per_class=6):
    """PagePixels: some of each class in each image, and two projections."""
    rng = np.random.default_rng(11)
    rows = []
    for index, image in enumerate(images):
        for k in range(num_classes):
            ys, xs = np.nonzero(image.label == k)
            for i in rng.permutation(len(ys))[:per_class]:
                rows.append((index, ys[i], xs[i], k))
    image, y, x, label = np.array(rows).T
    predicted = [
        np.array([images[i].runs[r].predicted[a, b] for i, a, b in zip(image, y, x, strict=True)])
        for r in range(runs)
    ]
    centers = rng.normal(size=(num_classes, 2)) * 4
    projections = {
        method: [centers[label] + rng.normal(size=(len(label), 2)) for _ in range(runs)]
        for method in ("t-SNE", "PCA")
    }
    confidence = [rng.uniform(0.3, 1, len(label)) for _ in range(runs)]
    return PagePixels(image, y, x, label, predicted, confidence, projections)


def hostile_content():
    """Content whose names try to get out of the places that they stand in."""
    content = content_of(runs=HOSTILE_RUNS, classes=HOSTILE_CLASSES, files=list(HOSTILE_FILES))
    config = {
        "<i onclick='globalThis.hacked=1'>KEY</i>": "</code><script>globalThis.hacked='config'</script>"
    }
    runs = [
        PageRun(run.name, config, {"<u>mIoU</u>": 50.0}, run.confusion, run.pair_images)
        for run in content.runs
    ]
    return PageContent(
        title="</title><script>globalThis.hacked='title'</script>",
        classes=content.classes,
        colors=content.colors,
        image_names=content.image_names,
        runs=runs,
        images=content.images,
        pixels=content.pixels,
        command="explore '</footer><svg onload=globalThis.hacked=1>'",
    )
