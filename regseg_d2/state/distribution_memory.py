"""Several feature directions per class: the memory of MDRL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regseg_d2.ops.mdrl import seed_directions

# A class whose features are shorter than this has no direction.
_MIN_NORM = 1e-6


class DistributionMemory(nn.Module):
    """N unit vectors per class, moving averages of the directions of its pixels (MDRL, section 3.2).

    Starts from zeros and explicit counts, so that every process holds the same bytes whatever its seed. A
    class is unseen, and none of its distributions counts, until the first step with a pixel of it. In that
    step its distributions start around the mean direction of its pixels, each leaning towards another one
    of N fixed, pseudo-random directions (:meth:`started`): without a generator and without regard to the
    order of pixels, so that it is the same however the batch is spread over processes. The pixels are then
    shared among these by the clustering, and the first share of a distribution replaces it (:meth:`update`);
    one that got none keeps its start.

    Args:
        num_classes: number of classes K.
        num_distributions: distributions per class N.
        channels: channels Z of a feature.
        momentum: mu of Eq. 8, the share of the old value in the new one, in [0, 1].

    Raises:
        ValueError: if ``num_distributions`` or ``momentum`` is out of its range.
    """

    distributions: Tensor
    counts: Tensor
    directions: Tensor

    def __init__(self, num_classes: int, num_distributions: int, channels: int, momentum: float) -> None:
        super().__init__()
        if num_distributions < 1 or not 0.0 <= momentum <= 1.0:
            raise ValueError(
                f"num_distributions is {num_distributions}, momentum is {momentum}; expected 1 or more, and "
                "a number in [0, 1]"
            )
        self.momentum = momentum
        self.register_buffer("distributions", torch.zeros(num_classes, num_distributions, channels))
        # Steps in which each distribution had a pixel.
        self.register_buffer("counts", torch.zeros(num_classes, num_distributions, dtype=torch.long))
        # Follow from N and Z: not part of the checkpoint.
        self.register_buffer("directions", seed_directions(num_distributions, channels), persistent=False)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.distributions.shape[0]

    @property
    def num_distributions(self) -> int:
        """Distributions per class N."""
        return self.distributions.shape[1]

    @property
    def channels(self) -> int:
        """Channels Z of a feature."""
        return self.distributions.shape[2]

    @property
    def seen(self) -> Tensor:
        """Bool ``(K,)``: classes that have distributions."""
        return self.counts.any(dim=1)

    @torch.no_grad()
    def started(self, class_sums: Tensor) -> tuple[Tensor, Tensor]:
        """The distributions that a step compares its pixels with; changes nothing.

        Args:
            class_sums: ``(K, Z)`` sums of features over the pixels of each class, of all processes.

        Returns:
            Distributions ``(K, N, Z)``, with a start for each class that is new in this step, and bool
            ``(K,)``, which classes have any. A class without has zeros.
        """
        stored = self.distributions.to(class_sums.dtype)
        norms = class_sums.norm(dim=1)
        means = class_sums / norms.clamp(min=_MIN_NORM).unsqueeze(1)
        starts = F.normalize(means.unsqueeze(1) + self.directions.to(means.dtype), dim=2)
        seen, new = self.seen, norms > _MIN_NORM
        starts = torch.where(new.view(-1, 1, 1), starts, 0.0)
        return torch.where(seen.view(-1, 1, 1), stored, starts), seen | new

    @torch.no_grad()
    def update(self, distributions: Tensor, sums: Tensor) -> None:
        """Moves the distributions by one step, Eq. 8; afterwards all are unit vectors again.

        Eq. 8 itself does not say that the moved vector is brought back to unit length; its cosines would
        shrink otherwise.

        Args:
            distributions: ``(K, N, Z)``, what :meth:`started` returned in this step.
            sums: ``(K, N, Z)`` sums of the unit features assigned to each distribution, of all processes.
        """
        norms = sums.norm(dim=2, keepdim=True)
        means = sums / norms.clamp(min=_MIN_NORM)
        moved = torch.lerp(means, distributions, self.momentum)
        moved = torch.where((self.counts > 0).unsqueeze(2), moved, means)
        lengths = moved.norm(dim=2, keepdim=True)
        # An opposite direction may cancel the old one, which stays then. A class that the step did not
        # compare with anything waits for the next one.
        has_value = (distributions != 0).any(dim=2, keepdim=True)
        moves = (norms > _MIN_NORM) & (lengths > _MIN_NORM) & has_value
        moved = torch.where(moves, moved / lengths.clamp(min=_MIN_NORM), distributions)
        self.counts.add_(moves.squeeze(2).to(self.counts.dtype))
        self.distributions.copy_(torch.where(self.seen.view(-1, 1, 1), moved, 0.0))
