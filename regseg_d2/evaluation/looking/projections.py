"""Features of several networks as points of a plane, placed so that the pictures can be compared."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.linalg import orthogonal_procrustes

from regseg_d2.common.errors import ConfigError, UserError

METHODS = ("tsne", "pca", "umap")
FEWEST_POINTS = 5

# Principal components that t-SNE and UMAP look at (van der Maaten and Hinton, JMLR 2008, section 4.2: 30).
_COMPONENTS = 50
# Neighbours that each point is kept near to: the defaults of both packages.
_PERPLEXITY, _NEIGHBORS = 30.0, 15


def project(features: Sequence[np.ndarray], method: str = "tsne", seed: int = 0) -> list[np.ndarray]:
    """Places the same pixels, or regions, by their features in each of several networks.

    All networks have the same parameters and start from the same positions, those of the first network's two
    principal components. The positions of later networks are then turned, and mirrored, onto those of the
    first one (orthogonal Procrustes): what still differs is the features' doing. The same arguments give the
    same positions, to the last bit on one machine, for which all methods take one thread.

    Args:
        features: ``(P, C)`` of each network, finite; C may differ.
        method: "tsne" (van der Maaten and Hinton, JMLR 2008), "pca", or "umap" (McInnes, Healy and Melville,
            2018), which needs umap-learn.
        seed: 0 or more.

    Returns:
        ``(P, 2)`` float64 of each network, with a mean of 0.

    Raises:
        ConfigError: an unknown method, fewer than 5 points, or networks with other numbers of points.
        UserError: a package that the method needs is missing.
    """
    if method not in METHODS:
        raise ConfigError(f"The projection is {method!r}; expected one of {', '.join(METHODS)}.")
    sizes = sorted({len(each) for each in features})
    if len(sizes) != 1 or sizes[0] < FEWEST_POINTS:
        raise ConfigError(
            f"There are {' and '.join(map(str, sizes)) or 'no'} points to project; expected the same number "
            f"of each network, {FEWEST_POINTS} or more: look at more images, with the same seed."
        )
    place = {"tsne": _tsne, "pca": _pca, "umap": _umap}[method]
    # Sums over threads come out in any order.
    with _package("threadpoolctl").threadpool_limits(limits=1):
        components = [_principal_components(each) for each in features]
        start = components[0][:, :2]
        start = start / max(float(start[:, 0].std()), np.finfo(np.float64).tiny)
        first, *others = (_centered(place(each, start, seed)) for each in components)
        return [first, *(each @ orthogonal_procrustes(each, first)[0] for each in others)]


def _principal_components(features: np.ndarray) -> np.ndarray:
    """The first components ``(P, c)`` of features, at least two."""
    points, channels = features.shape
    count = min(_COMPONENTS, points, channels)
    solver = "covariance_eigh" if points >= channels else "full"
    pca = _package("sklearn.decomposition").PCA(count, svd_solver=solver)
    with np.errstate(invalid="ignore"):  # shares of a variance that is 0
        components = pca.fit_transform(features.astype(np.float64))
    return np.pad(components, ((0, 0), (0, max(2 - count, 0))))


def _pca(components: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    return components[:, :2]


def _tsne(components: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    # Positions are changed in place, and begin within 1e-4 of each other.
    tsne = _package("sklearn.manifold").TSNE(
        perplexity=perplexity, init=(1e-4 * start).astype(np.float32), random_state=seed, n_jobs=1
    )
    return tsne.fit_transform(components.astype(np.float32))


def _umap(components: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    neighbors = min(_NEIGHBORS, len(components) - 1)
    umap = _package("umap", "umap-learn, which nothing else needs: pip install umap-learn").UMAP(
        n_neighbors=neighbors, init=start.astype(np.float32), random_state=seed, n_jobs=1
    )
    return umap.fit_transform(components.astype(np.float32))


def _centered(positions: np.ndarray) -> np.ndarray:
    positions = positions.astype(np.float64)
    return positions - positions.mean(axis=0)


def _package(
    name: str, needed: str = "scikit-learn: pip install 'regseg_d2[explore]', or pip install scikit-learn"
) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"This projection needs {needed} ({error}).") from error
