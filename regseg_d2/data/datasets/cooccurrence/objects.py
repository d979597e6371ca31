"""Objects of the co-occurrence data set, drawn as shapes in a square canvas.

A shape is a list of layers, back to front. Each is drawn in its own mask; the object's mask is their
union. Coordinates are shares of the canvas: x to the right, y down, the object facing right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from regseg_d2.data.datasets.cooccurrence.textures import coat, paint

# Colours are shared by look-alikes, so that colour tells nothing about the class.
_FUR = np.array([[112, 74, 44], [176, 128, 78], [58, 46, 40], [222, 208, 184], [146, 98, 62]], dtype=float)
_FEATHERS = np.array([[236, 232, 222], [160, 108, 62], [92, 70, 52], [206, 170, 108]], dtype=float)
_PAINTS = np.array(
    [[188, 44, 40], [44, 76, 160], [228, 226, 220], [222, 178, 50], [46, 122, 78], [60, 62, 70]], dtype=float
)
_BEAKS = np.array([[226, 150, 46], [206, 176, 80]], dtype=float)
_GLASS = np.array([150, 182, 200], dtype=float)
_RUBBER = np.array([34, 34, 36], dtype=float)

Point = tuple[float, float]


@dataclass
class Canvas:
    """A square of ``side`` pixels to draw on; body parts show the texture, RGB float ``(side, side, 3)``."""

    side: int
    texture: np.ndarray
    mask: np.ndarray = field(init=False)
    pixels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mask = np.zeros((self.side, self.side), dtype=np.uint8)
        self.pixels = np.zeros((self.side, self.side, 3), dtype=np.float32)

    def polygon(self, points: list[Point], color: np.ndarray | None = None, shade: float = 1.0) -> None:
        """Fills a polygon with ``color``, or the body's texture times ``shade``."""
        part = self._empty()
        corners = np.round(np.array(points) * self.side).astype(np.int32)
        cv2.fillPoly(part, [corners], 1)
        self._paint(part, color, shade)

    def ellipse(
        self,
        center: Point,
        radii: Point,
        angle: float = 0.0,
        color: np.ndarray | None = None,
        shade: float = 1.0,
        arc: tuple[float, float] = (0, 360),
    ) -> None:
        """Fills an ellipse turned by ``angle`` degrees, or the sector ``arc`` of it."""
        part = self._empty()
        middle = tuple(int(round(value * self.side)) for value in center)
        axes = tuple(max(int(round(value * self.side)), 1) for value in radii)
        cv2.ellipse(part, middle, axes, angle, arc[0], arc[1], 1, thickness=-1)
        self._paint(part, color, shade)

    def line(
        self, points: list[Point], width: float, color: np.ndarray | None = None, shade: float = 1.0
    ) -> None:
        """Draws a line through the points, ``width`` thick."""
        part = self._empty()
        corners = np.round(np.array(points) * self.side).astype(np.int32)
        cv2.polylines(part, [corners], False, 1, thickness=max(int(round(width * self.side)), 1))
        self._paint(part, color, shade)

    def _empty(self) -> np.ndarray:
        return np.zeros((self.side, self.side), dtype=np.uint8)

    def _paint(self, part: np.ndarray, color: np.ndarray | None, shade: float) -> None:
        inside = part > 0
        self.mask[inside] = 1
        self.pixels[inside] = self.texture[inside] * shade if color is None else color


def _legs(
    canvas: Canvas, rng: np.random.Generator, places: list[float], top: float, bottom: float, width: float
) -> None:
    """Legs in a random stride; the far ones darker."""
    for i, x in enumerate(places):
        step = rng.uniform(-0.04, 0.04)
        canvas.line([(x, top), (x + step, bottom)], width, shade=0.72 if i % 2 else 0.9)


def draw_cow(rng: np.random.Generator, side: int) -> Canvas:
    """A cow: level back, low head with horns, udder."""
    canvas = Canvas(side, coat(rng, (side, side), _FUR, spotted=0.8))
    back, belly = rng.uniform(0.34, 0.40), rng.uniform(0.60, 0.66)
    legs_end = rng.uniform(0.86, 0.95)
    _legs(canvas, rng, [0.22, 0.29, 0.58, 0.65], belly - 0.06, legs_end, 0.055)
    canvas.line([(0.16, back + 0.05), (0.11, back + rng.uniform(0.2, 0.32))], 0.03, shade=0.8)
    canvas.ellipse((0.43, (back + belly) / 2), (0.28, (belly - back) / 2 + 0.01))
    canvas.ellipse((0.36, belly), (0.05, 0.04), color=np.array([214, 160, 150]))
    x, y = rng.uniform(0.80, 0.84), rng.uniform(0.32, 0.50)  # middle of the head
    canvas.polygon([(0.60, back + 0.02), (x - 0.03, y - 0.05), (x, y + 0.06), (0.64, belly - 0.04)])
    canvas.ellipse((x, y), (0.10, 0.06), angle=rng.uniform(15, 50))
    horn = np.array([226, 216, 190])
    for lean in (-0.05, 0.03):
        canvas.line([(x - 0.04, y - 0.05), (x - 0.04 + lean, y - 0.13)], 0.025, color=horn)
    return canvas


def draw_camel(rng: np.random.Generator, side: int) -> Canvas:
    """A camel: one or two humps, raised head without horns, no udder."""
    canvas = Canvas(side, coat(rng, (side, side), _FUR, spotted=0.2))
    back, belly = rng.uniform(0.36, 0.42), rng.uniform(0.60, 0.65)
    legs_end = rng.uniform(0.88, 0.96)
    _legs(canvas, rng, [0.22, 0.29, 0.56, 0.63], belly - 0.06, legs_end, 0.05)
    canvas.line([(0.16, back + 0.05), (0.12, back + rng.uniform(0.15, 0.28))], 0.025, shade=0.8)
    canvas.ellipse((0.42, (back + belly) / 2), (0.27, (belly - back) / 2 + 0.01))
    humps = [0.40] if rng.random() < 0.5 else [0.31, 0.52]
    for x in humps:
        canvas.ellipse((x, back + 0.03), (0.15 / len(humps) + 0.02, rng.uniform(0.10, 0.15)))
    head = (rng.uniform(0.80, 0.86), rng.uniform(0.20, 0.32))
    canvas.line([(0.62, 0.48), (0.72, 0.50), (head[0] - 0.05, head[1] + 0.02)], 0.085)
    canvas.ellipse(head, (0.085, 0.048), angle=rng.uniform(0, 25))
    return canvas


def _bird_body(canvas: Canvas, rng: np.random.Generator, lean: float) -> Point:
    """Body, wing, neck and head that both birds have; returns the head's middle."""
    canvas.ellipse((0.44, 0.56), (0.28, 0.17), angle=lean)
    head = (rng.uniform(0.72, 0.78), rng.uniform(0.26, 0.34))
    canvas.polygon([(0.52, 0.48), (head[0] - 0.07, head[1]), (head[0] + 0.06, head[1] + 0.03), (0.70, 0.62)])
    canvas.ellipse(head, (0.09, 0.085))
    canvas.ellipse((0.40, 0.54), (0.17, 0.09), angle=lean + rng.uniform(0, 15), shade=0.8)
    return head


def draw_hen(rng: np.random.Generator, side: int) -> Canvas:
    """A hen: comb, pointed beak, raised tail, legs."""
    canvas = Canvas(side, coat(rng, (side, side), _FEATHERS, spotted=0.5))
    beak = _BEAKS[rng.integers(len(_BEAKS))]
    for x in (0.42, 0.52):
        canvas.line([(x, 0.68), (x + rng.uniform(-0.03, 0.03), 0.92)], 0.035, color=beak)
    canvas.polygon(
        [(0.28, 0.60), (rng.uniform(0.06, 0.14), rng.uniform(0.22, 0.34)), (0.36, 0.42)], shade=0.85
    )
    x, y = _bird_body(canvas, rng, rng.uniform(-15, 0))
    canvas.polygon([(x + 0.07, y - 0.03), (x + 0.17, y + 0.02), (x + 0.06, y + 0.04)], color=beak)
    comb = np.array([196, 48, 40])
    for shift in (-0.05, 0.0, 0.05):
        canvas.ellipse((x + shift, y - 0.09), (0.035, 0.05), color=comb)
    _eye(canvas, (x, y))
    return canvas


def draw_duck(rng: np.random.Generator, side: int) -> Canvas:
    """A duck: flat bill, low tail, no comb, feet under the body."""
    canvas = Canvas(side, coat(rng, (side, side), _FEATHERS, spotted=0.5))
    bill = _BEAKS[rng.integers(len(_BEAKS))]
    canvas.polygon(
        [(0.28, 0.66), (rng.uniform(0.06, 0.12), rng.uniform(0.44, 0.52)), (0.30, 0.48)], shade=0.85
    )
    canvas.polygon([(0.36, 0.68), (0.60, 0.68), (0.56, 0.78), (0.40, 0.78)], color=bill * 0.85)
    head = _bird_body(canvas, rng, rng.uniform(-4, 8))
    canvas.ellipse((head[0] + 0.13, head[1] + 0.03), (0.08, 0.032), angle=8, color=bill)
    _eye(canvas, head)
    return canvas


def _eye(canvas: Canvas, head: Point) -> None:
    canvas.ellipse((head[0] + 0.03, head[1] - 0.015), (0.018, 0.018), color=np.array([24, 20, 18]))


def _cabin(
    canvas: Canvas, rng: np.random.Generator, left: float, right: float, top: float, bottom: float
) -> None:
    """A cabin with one to three windows, alike on boats and cars."""
    slope_left, slope_right = rng.uniform(0.0, 0.10), rng.uniform(0.04, 0.12)
    canvas.polygon([(left, bottom), (left + slope_left, top), (right - slope_right, top), (right, bottom)])
    count = int(rng.integers(1, 4))
    inner_left, inner_right = left + slope_left + 0.02, right - slope_right - 0.01
    width = (inner_right - inner_left) / count
    for i in range(count):
        x, low, high = inner_left + i * width, bottom - 0.03, top + 0.03
        end = x + width - 0.025
        color = _GLASS + rng.normal(0, 8)
        canvas.polygon([(x, low), (x, high), (end, high), (end, low)], color=color)


def draw_car(rng: np.random.Generator, side: int) -> Canvas:
    """A car: body on two wheels, cabin."""
    canvas = Canvas(side, paint(rng, (side, side), _PAINTS))
    belt, floor = rng.uniform(0.46, 0.54), rng.uniform(0.72, 0.78)
    left, right, height = rng.uniform(0.14, 0.26), rng.uniform(0.66, 0.80), rng.uniform(0.16, 0.24)
    _cabin(canvas, rng, left, right, belt - height, belt + 0.02)
    nose = rng.uniform(0.0, 0.08)
    canvas.polygon(
        [(0.06, belt), (0.90 - nose, belt), (0.95, belt + nose + 0.03), (0.95, floor), (0.06, floor)]
    )
    radius = rng.uniform(0.07, 0.095)
    for x in (0.25, 0.74):
        canvas.ellipse((x, floor), (radius, radius), color=_RUBBER)
        canvas.ellipse((x, floor), (radius * 0.45, radius * 0.45), color=np.array([168, 168, 172]))
    return canvas


def draw_boat(rng: np.random.Generator, side: int) -> Canvas:
    """A boat: hull that narrows downwards, cabin, now and then a mast with a sail."""
    canvas = Canvas(side, paint(rng, (side, side), _PAINTS))
    deck, keel = rng.uniform(0.50, 0.58), rng.uniform(0.74, 0.82)
    if rng.random() < 0.35:
        mast = rng.uniform(0.40, 0.52)
        canvas.line([(mast, 0.08), (mast, deck)], 0.025, color=np.array([110, 84, 58]))
        sail = [(mast + 0.03, 0.10), (mast + 0.03, deck - 0.04), (0.84, deck - 0.04)]
        canvas.polygon(sail, color=np.array([232, 228, 214]))
    else:
        left, right, height = rng.uniform(0.18, 0.30), rng.uniform(0.60, 0.74), rng.uniform(0.16, 0.24)
        _cabin(canvas, rng, left, right, deck - height, deck + 0.02)
    bow = rng.uniform(0.0, 0.06)
    canvas.polygon([(0.05, deck), (0.96, deck - bow), (0.80, keel), (0.18, keel)])
    return canvas


DRAWINGS: dict[str, Callable[[np.random.Generator, int], Canvas]] = {
    "cow": draw_cow,
    "hen": draw_hen,
    "camel": draw_camel,
    "boat": draw_boat,
    "duck": draw_duck,
    "car": draw_car,
}
