"""What every generated image shares: paint layers, backgrounds, clutter, light and a camera's faults."""

import colorsys
import functools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (num_points, 2), x to the right and y down
Colour = tuple[float, float, float]  # RGB, 0..255
Image = NDArray[np.float32]  # (size, size, 3), 0..255
Mask = NDArray[np.float32]  # (size, size), 0..1

SUBPIXEL_BITS = 4  # cv2's fixed-point coordinates: 1/16 pixel


@dataclass(frozen=True)
class Layer:
    """Paint on glass: colours, where they cover, and the matrix from the unit frame [-1, 1]² to pixels."""

    colours: NDArray[np.uint8]  # (size, size, 3)
    cover: NDArray[np.uint8]  # (size, size)
    matrix: NDArray[np.float64]  # (2, 3)


def make_layer(size: int, ground: Colour, matrix: NDArray[np.float64]) -> Layer:
    """An empty layer; `ground` is the colour that half-covered pixels at the rim are mixed from."""
    colours = np.empty((size, size, 3), np.uint8)
    cv2.rectangle(colours, (0, 0), (size, size), ground, -1)
    return Layer(colours, np.zeros((size, size), np.uint8), matrix)


def make_pose(
    rng: np.random.Generator, size: int, scale: tuple[float, float], turn: float = math.pi, drift: float = 1.0
) -> NDArray[np.float64]:
    """A random view of the unit frame: scale (share of the image), turn (± radians), shear, place.

    drift: 1 lets the frame's rim reach the image's rim, more lets it leave the image.
    """
    share = rng.uniform(*scale)
    angle = rng.uniform(-turn, turn)
    squeeze = rng.uniform(0.72, 1.0)
    tilt = rng.uniform(0, math.pi)
    spin = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    lean = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    linear = lean @ np.diag([1.0, squeeze]) @ lean.T @ spin * (share * size / 2)
    if rng.random() < 0.5:
        linear[:, 0] *= -1
    room = max(0.08, 1 - share) * drift * size / 2
    centre = size / 2 + rng.uniform(-room, room, 2)
    return np.hstack([linear, centre[:, None]])


def fill(layer: Layer, points: Points, colour: Colour) -> None:
    """Paints a closed shape given in the unit frame."""
    fixed = _to_pixels(layer, points)
    cv2.fillPoly(layer.colours, [fixed], colour, cv2.LINE_AA, SUBPIXEL_BITS)
    cv2.fillPoly(layer.cover, [fixed], 255, cv2.LINE_AA, SUBPIXEL_BITS)


def stroke(layer: Layer, points: Points, width: float, colour: Colour, covers: bool = True) -> None:
    """Paints an open line, `width` in the unit frame; with `covers` False it only colours what is there."""
    fixed = _to_pixels(layer, points)
    pixels = max(1, round(width * math.sqrt(abs(np.linalg.det(layer.matrix[:, :2])))))
    cv2.polylines(layer.colours, [fixed], False, colour, pixels, cv2.LINE_AA, SUBPIXEL_BITS)
    if covers:
        cv2.polylines(layer.cover, [fixed], False, 255, pixels, cv2.LINE_AA, SUBPIXEL_BITS)


def tint(layer: Layer, points: Points, colour: Colour) -> None:
    """Colours a closed shape without covering anything new: a mark on what is already there."""
    cv2.fillPoly(layer.colours, [_to_pixels(layer, points)], colour, cv2.LINE_AA, SUBPIXEL_BITS)


def _to_pixels(layer: Layer, points: Points) -> NDArray[np.int32]:
    matrix = layer.matrix * (1 << SUBPIXEL_BITS)
    return np.rint(points @ matrix[:, :2].T + matrix[:, 2]).astype(np.int32)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, turn: float = 0.0, steps: int = 24) -> Points:
    """The rim of an ellipse."""
    c, s = math.cos(turn), math.sin(turn)
    rim: Points = _circle(steps) @ np.array([[radius_x * c, radius_x * s], [-radius_y * s, radius_y * c]]) + (x, y)
    return rim


@functools.cache
def _circle(steps: int) -> Points:
    angle = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def polar(radius: NDArray[np.float64], turn: float = 0.0) -> Points:
    """The closed curve of radii at evenly spaced angles."""
    return turned(_circle(len(radius)) * radius[:, None], turn)


def turned(points: Points, angle: float, x: float = 0.0, y: float = 0.0) -> Points:
    """The points turned about the origin, then moved by (x, y)."""
    c, s = math.cos(angle), math.sin(angle)
    moved: Points = points @ np.array([[c, s], [-s, c]]) + (x, y)
    return moved


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB of a hue (turns), saturation and value (clipped to 0..1)."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return 255 * r, 255 * g, 255 * b


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour made darker (< 1) or lighter (> 1)."""
    r, g, b = colour
    if factor > 1:
        mix = min(factor - 1, 1.0)
        return r + (255 - r) * mix, g + (255 - g) * mix, b + (255 - b) * mix
    return r * factor, g * factor, b * factor


def make_noise(rng: np.random.Generator, size: int, octaves: tuple[int, ...]) -> Mask:
    """Smooth noise in about [-1, 1]: random grids of the given sides, enlarged and summed, coarse ones heavier."""
    total = np.zeros((size, size), np.float32)
    weight = 0.0
    for number, cells in enumerate(octaves):
        grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) * 0.6**number
        weight += 0.6**number
    return total * np.float32(1.6 / weight)


def make_background(rng: np.random.Generator, size: int) -> Image:
    """A ground of one of several kinds: plain, sky and land, mottled, stripes, tiles, strokes, pebbles, bokeh."""
    hue = rng.random()
    near = hue + rng.normal(0, 0.08)
    far = rng.random() if rng.random() < 0.4 else near
    low = np.array(hsv(near, rng.beta(1.5, 2.5), rng.uniform(0.15, 0.75)), np.float32)
    high = np.array(hsv(far, rng.beta(1.5, 2.5), rng.uniform(0.45, 1.0)), np.float32)
    kind = rng.integers(8)
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))  # (size, size), about -1..1
    share: NDArray[np.floating[Any]]
    if kind == 0:
        share = 0.5 + 0.5 * along
    elif kind == 1:
        horizon = rng.uniform(-0.4, 0.5) + 0.15 * make_noise(rng, size, (4, 9))
        share = 1 / (1 + np.exp((y - horizon) * np.float32(rng.uniform(4, 40)))) + 0.2 * make_noise(rng, size, (6, 18))
    elif kind == 2:
        share = 0.5 + 0.5 * make_noise(rng, size, (3, 7, 15, 31))
    elif kind == 3:
        wave = along * rng.uniform(8, 40) + 2 * make_noise(rng, size, (3, 6))
        share = 0.5 + 0.5 * np.tanh(rng.uniform(0.5, 4) * np.sin(wave))
    elif kind == 4:
        across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
        pitch = rng.uniform(5, 18)
        share = 0.5 + 0.5 * np.sign(np.sin(along * pitch) * np.sin(across * pitch)) * rng.uniform(0.3, 1)
        share = share + 0.15 * make_noise(rng, size, (12, 30))
    elif kind == 5:
        share = 0.4 + 0.4 * make_noise(rng, size, (4, 10))
    elif kind == 6:
        share = 0.3 + 0.3 * make_noise(rng, size, (5, 11, 40))
    else:
        share = 0.4 + 0.3 * along
    share = np.clip(share, 0, 1).astype(np.float32)
    ground = cv2.merge([low[channel] + (high[channel] - low[channel]) * share for channel in range(3)])
    if kind == 5:
        _add_strokes(rng, ground, low, high)
    elif kind == 6:
        _add_spots(rng, ground, low, high, int(rng.integers(25, 60)), (0.03, 0.11))
    elif kind == 7:
        _add_spots(rng, ground, low, high, int(rng.integers(8, 22)), (0.05, 0.22))
        ground = cv2.GaussianBlur(ground, (0, 0), size * rng.uniform(0.015, 0.05))
    return np.ascontiguousarray(ground, np.float32)


def _grid(size: int) -> tuple[Mask, Mask]:
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[:, None], line[None, :]


def _add_strokes(rng: np.random.Generator, ground: Image, low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
    """Blades, straw or twigs: many short strokes of about one direction."""
    size = len(ground)
    count = int(rng.integers(60, 160))
    main = rng.uniform(0, math.pi)
    angle = main + rng.normal(0, rng.uniform(0.1, 0.8), count)
    start = rng.uniform(-0.1, 1.1, (count, 2)) * size
    end = start + (np.stack([np.cos(angle), np.sin(angle)], 1) * (rng.uniform(0.06, 0.3, count) * size)[:, None])
    shares = rng.uniform(-0.2, 1.2, count)
    ends = np.round(np.stack([start, end], 1) * 16).astype(np.int32)
    width = int(rng.integers(1, 3))
    for pair, share in zip(ends, shares, strict=True):
        colour = np.clip(low + (high - low) * share, 0, 255)
        cv2.line(ground, pair[0].tolist(), pair[1].tolist(), colour.tolist(), width, cv2.LINE_AA, SUBPIXEL_BITS)


def _add_spots(
    rng: np.random.Generator,
    ground: Image,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    count: int,
    radii: tuple[float, float],
) -> None:
    """Pebbles or lights: discs and ellipses in the ground's colours."""
    size = len(ground)
    centres = np.round(rng.uniform(0, size, (count, 2)) * 16).astype(int).tolist()
    radius = rng.uniform(*radii, count) * size * 16
    flat = rng.uniform(0.55, 1.0, count)
    angles = rng.uniform(0, 360, count)
    shares = rng.uniform(-0.3, 1.3, count)
    for centre, r, f, angle, share in zip(centres, radius, flat, angles, shares, strict=True):
        colour = np.clip(low + (high - low) * share, 0, 255)
        axes = (int(r), int(r * f))
        cv2.ellipse(ground, centre, axes, angle, 0, 360, (colour * 0.65).tolist(), -1, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.ellipse(
            ground,
            centre,
            (int(axes[0] * 0.85), int(axes[1] * 0.85)),
            angle,
            0,
            360,
            colour.tolist(),
            -1,
            cv2.LINE_AA,
            SUBPIXEL_BITS,
        )


def scrap(rng: np.random.Generator) -> Points:
    """A shape without a name: a wavy blob, a sliver, a bent bar or a polygon."""
    kind = rng.integers(4)
    if kind == 0:
        radius = np.full(40, 0.7)
        angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        for k in (2, 3, 4):
            radius = radius + rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6.3))
        return polar(radius)
    if kind == 1:
        return ellipse(0, 0, 1, rng.uniform(0.12, 0.4))
    if kind == 2:
        bend = rng.uniform(-0.6, 0.6)
        t = np.linspace(-1, 1, 12)
        width = rng.uniform(0.08, 0.22)
        top = np.stack([t, bend * t * t - width], 1)
        return np.concatenate([top, top[::-1] + (0, 2 * width)])
    corners = rng.integers(3, 7)
    return polar(rng.uniform(0.5, 1.0, corners), rng.uniform(0, 6.3))


def add_clutter(rng: np.random.Generator, image: Image, count: int, scale: tuple[float, float]) -> Image:
    """The image with `count` scraps laid over it, lit like everything else."""
    if count == 0:
        return image
    size = len(image)
    hue = rng.random()
    layer = make_layer(size, hsv(hue, 0.4, 0.5), np.zeros((2, 3)))
    for _ in range(count):
        colour = hsv(hue + rng.normal(0, 0.15), rng.beta(2, 2), rng.uniform(0.2, 0.95))
        pose = make_pose(rng, size, scale, drift=1.25)
        fill(Layer(layer.colours, layer.cover, pose), scrap(rng), colour)
    return lay(rng, image, layer, rng.uniform(0, 2 * math.pi), relief=rng.uniform(0, 0.5))


def lay(rng: np.random.Generator, image: Image, layer: Layer, light: float, relief: float) -> Image:
    """The image with the layer on it: bulged by `relief`, lit from angle `light`, casting a shadow."""
    size = len(image)
    half = (size // 2, size // 2)  # Light and shadow are smooth: half the resolution shows no difference.
    cover = layer.cover.astype(np.float32) * np.float32(1 / 255)
    soft = cv2.GaussianBlur(cv2.resize(cover, half, interpolation=cv2.INTER_AREA), (0, 0), size * 0.025)
    # The slope of the blurred cover stands for a rounded body: bright towards the light, dark away from it.
    slope = cv2.Scharr(soft, cv2.CV_32F, 1, 0) * math.cos(light) + cv2.Scharr(soft, cv2.CV_32F, 0, 1) * math.sin(light)
    lit = cv2.resize(np.clip(1 + slope * np.float32(relief * size / 192), 0.35, 1.5), (size, size))
    shift = size * rng.uniform(0.005, 0.03)
    move = np.array([[1, 0, shift * math.cos(light)], [0, 1, shift * math.sin(light)]])
    shadow = cv2.resize(cv2.warpAffine(soft, move, half), (size, size)) * np.float32(rng.uniform(0.0, 0.65))
    under = _weighted(image, (1 - shadow) * (1 - cover))
    return under + _weighted(layer.colours, lit * cover)


def _weighted(image: NDArray[np.generic], weight: Mask) -> Image:
    result: Image = cv2.multiply(image, cv2.merge([weight, weight, weight]), dtype=cv2.CV_32F)
    return result


def add_texture(rng: np.random.Generator, layer: Layer, strength: float) -> None:
    """Mottles the layer's paint in place, in its own brightness."""
    side = len(layer.cover)
    grain = make_noise(rng, side // 2, (int(rng.integers(4, 9)), int(rng.integers(12, 32))))
    grain = cv2.resize(1 + grain * np.float32(strength), (side, side), interpolation=cv2.INTER_LINEAR)
    cv2.multiply(layer.colours, cv2.merge([grain] * 3), dst=layer.colours, dtype=cv2.CV_8U)


def photograph(rng: np.random.Generator, image: Image, hardness: float = 1.0) -> NDArray[np.uint8]:
    """The image as a poor camera sees it: uneven light, colour cast, contrast, blur, grain; uint8."""
    size = len(image)
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    slant = rng.uniform(0, 0.32) * hardness
    light = 1 + (x * np.float32(slant * math.cos(angle)) + y * np.float32(slant * math.sin(angle)))
    if rng.random() < 0.3:
        light = light * (1 - np.float32(rng.uniform(0.1, 0.35)) * (x * x + y * y) / 1.4)
    if rng.random() < 0.3 * hardness:
        # The shadow of something outside the image.
        light = light * (1 - np.float32(rng.uniform(0.2, 0.5)) * (make_noise(rng, size, (3, 5)) > 0.25))
    cast = rng.normal(1, 0.07 * hardness, 3)
    contrast = rng.uniform(1 - 0.4 * hardness, 1.2)
    level = rng.uniform(-15, 35) * hardness
    image = cv2.multiply(image, cv2.merge([light * np.float32(factor * contrast) for factor in cast]))
    image += np.float32(128 * (1 - contrast) + level)
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), size / 96 * rng.uniform(0.3, 1.1) * hardness + 0.01)
    sigma = rng.uniform(1, 11) * hardness
    grained = cv2.addWeighted(image, 1.0, _grain(rng, size), sigma, 0.0)
    taken_image: NDArray[np.uint8] = cv2.convertScaleAbs(cv2.max(grained, 0.0))
    return taken_image


# Drawing normal numbers costs more than the rest of the camera; a fixed sheet, cut at a random place, looks the same.
_SHEET = np.random.default_rng(0).standard_normal(1 << 19, dtype=np.float32)


def _grain(rng: np.random.Generator, size: int) -> Image:
    count = size * size * 3
    if count >= len(_SHEET):
        return rng.standard_normal((size, size, 3), dtype=np.float32)
    start = int(rng.integers(len(_SHEET) - count))
    return _SHEET[start : start + count].reshape(size, size, 3)
