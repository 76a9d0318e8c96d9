"""The source family: any number of classes, each a formula, for pre-training without a photograph.

Four kinds of formula: attractors of iterated function systems (Kataoka et al., "Pre-training without natural images",
ACCV 2020), closed contours of summed waves and superformulas (Takashima et al., "Visual atoms", CVPR 2023; Gielis 2003),
figures assembled from parts by symmetry, and textures. A class fixes the formula; an image draws everything else:
pose, colours, light, ground, clutter and a tenth of jitter in the formula itself. No target thing is among them.
"""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.images.generated.scenes import (
    Colour,
    Image,
    Layer,
    Points,
    add_clutter,
    add_texture,
    ellipse,
    fill,
    hsv,
    lay,
    make_background,
    make_layer,
    make_noise,
    make_pose,
    photograph,
    polar,
    shaded,
    stroke,
    tint,
    turned,
)
from frostline.seeding import derive_seed

Rng = np.random.Generator

# The root of all class formulas: class 17 is the same formula in every set.
FAMILY_SEED = 2020
# One round of kinds; class `label` is of kind ROUND[label % len(ROUND)].
ROUND = ("figure", "contour", "texture", "figure", "fractal", "figure", "contour", "texture")


def draw_formula(label: int, rng: Rng, size: int) -> NDArray[np.uint8]:
    """One image of class `label`: uint8 (size, size, 3)."""
    kind = ROUND[label % len(ROUND)]
    # Half of the images are plain: without them a small network stays at chance for thousands of steps.
    plain = rng.random() < 0.5
    image = make_background(rng, size)
    if plain:
        image = cv2.GaussianBlur(image, (0, 0), size * 0.12)
    else:
        image = add_clutter(rng, image, int(rng.integers(0, 6)), (0.1, 0.45))
    main = hsv(rng.random(), rng.beta(2.5, 1.8), rng.uniform(0.4, 1.0))
    if kind == "texture":
        image = _lay_texture(rng, image, texture_of(label))
    else:
        turn = math.pi if rng.random() < 0.5 else 0.5
        scale, drift = ((0.85, 1.05), 0.5) if plain else ((0.55, 1.05), 1.1)
        layer = make_layer(size, main, make_pose(rng, size, scale, turn, drift))
        if kind == "fractal":
            _draw_fractal(rng, layer, fractal_of(label))
        elif kind == "contour":
            _draw_contour(rng, layer, contour_of(label), main)
        else:
            _draw_figure(rng, layer, figure_of(label), main)
        if rng.random() < 0.7:
            add_texture(rng, layer, rng.uniform(0.05, 0.2 if plain else 0.4))
        image = lay(rng, image, layer, rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.8))
    if not plain and rng.random() < 0.5:
        image = add_clutter(rng, image, int(rng.integers(1, 4)), (0.12, 0.35))
    return photograph(rng, image, hardness=0.4 if plain else 1.0)


def _rng_of(label: int, kind: str) -> Rng:
    return np.random.default_rng(derive_seed(FAMILY_SEED, "source", kind, label))


# --- Iterated function systems -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fractal:
    """Contracting affine maps of the plane; the image is their attractor."""

    linear: NDArray[np.float64]  # (num_maps, 2, 2)
    shift: NDArray[np.float64]  # (num_maps, 2)


def attractor(fractal: Fractal, depth_points: int) -> Points:
    """About `depth_points` points of the attractor, scaled into the unit frame: all compositions of the maps."""
    points = np.zeros((1, 2))
    while len(points) < depth_points:
        points = (np.einsum("mij,pj->mpi", fractal.linear, points) + fractal.shift[:, None]).reshape(-1, 2)
    low, high = np.percentile(points, (1, 99), axis=0)
    scaled: Points = (points - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-6)
    return scaled


@functools.lru_cache(maxsize=4096)
def fractal_of(label: int) -> Fractal:
    """The class's maps; drawn again until the attractor is neither dust nor a blot."""
    rng = _rng_of(label, "fractal")
    while True:
        maps = int(rng.integers(2, 6))
        angles = rng.uniform(-math.pi, math.pi, (2, maps))
        stretch = np.sort(rng.uniform(0.25, 0.85, (maps, 2)), axis=1)
        linear = np.stack(
            [
                _turn(a) @ np.diag(s * rng.choice([-1, 1], 2)) @ _turn(b)
                for a, s, b in zip(angles[0], stretch, angles[1], strict=True)
            ]
        )
        fractal = Fractal(linear, rng.uniform(-1, 1, (maps, 2)))
        points = attractor(fractal, 3000)
        cells = np.clip((points * 14 + 16).astype(int), 0, 31)
        filled = len(np.unique(cells[:, 0] * 32 + cells[:, 1])) / 1024
        if 0.12 < filled < 0.5:
            return fractal


def _turn(angle: float) -> NDArray[np.float64]:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _draw_fractal(rng: Rng, layer: Layer, fractal: Fractal) -> None:
    jitter = 1 + rng.uniform(-0.1, 0.1, fractal.linear.shape)
    points = attractor(Fractal(fractal.linear * jitter, fractal.shift), 5000)
    size = len(layer.cover)
    pixels = (points @ layer.matrix[:, :2].T + layer.matrix[:, 2]).astype(np.int32)
    inside = ((pixels >= 0) & (pixels < size)).all(axis=1)
    flat = pixels[inside, 1] * size + pixels[inside, 0]
    density = np.bincount(flat, minlength=size * size).reshape(size, size).astype(np.float32)
    cover = 1 - np.exp(
        -cv2.GaussianBlur(density, (0, 0), rng.uniform(0.5, 0.9) * size / 96) * np.float32(rng.uniform(1.5, 4))
    )
    layer.cover[:] = cover * 255
    # Colour runs across the figure, as FractalDB's coloured variant; two hues, near or far.
    first, second = np.array(hsv(rng.random(), 0.7, 0.9)), np.array(hsv(rng.random(), 0.7, 0.7))
    share = np.clip(0.5 + 0.5 * make_noise(rng, size, (2, 4)), 0, 1)
    layer.colours[:] = cv2.merge([(first[c] + (second[c] - first[c]) * share).astype(np.uint8) for c in range(3)])


# --- Contours ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contour:
    """A closed curve r(angle): two waves (visual atoms) or a superformula, and rings of it inside one another."""

    waves: tuple[tuple[int, float, float], ...]  # frequency, amplitude, phase
    superformula: tuple[float, float, float, float] | None  # m, n1, n2, n3
    flat: float
    rings: tuple[float, ...]
    hole: bool


@functools.lru_cache(maxsize=4096)
def contour_of(label: int) -> Contour:
    """The class's curve."""
    rng = _rng_of(label, "contour")
    formula = None
    if rng.random() < 0.5:
        formula = (float(rng.integers(2, 11)), rng.uniform(0.35, 3), rng.uniform(0.4, 4), rng.uniform(0.4, 4))
    waves = tuple((int(rng.integers(1, 12)), rng.uniform(0.04, 0.35), rng.uniform(0, 6.3)) for _ in range(2))
    rings = tuple(sorted(rng.uniform(0.25, 0.9, rng.integers(0, 4)), reverse=True))
    return Contour(waves, formula, rng.uniform(0.4, 1.0), rings, bool(rng.random() < 0.25))


def curve_of(contour: Contour, rng: Rng, steps: int = 96) -> Points:
    """The contour with a tenth of jitter, in the unit frame."""
    angle = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    radius = np.ones(steps)
    if contour.superformula is not None:
        m, n1, n2, n3 = (
            value * rng.uniform(0.93, 1.07) if k else value for k, value in enumerate(contour.superformula)
        )
        radius = (np.abs(np.cos(m * angle / 4)) ** n2 + np.abs(np.sin(m * angle / 4)) ** n3 + 1e-3) ** (-1 / n1)
        radius = np.minimum(radius / np.median(radius), 2.5)
    for frequency, amplitude, phase in contour.waves:
        radius = radius * (1 + amplitude * rng.uniform(0.85, 1.15) * np.sin(frequency * angle + phase))
    points = polar(radius / radius.max())
    return points * (1.0, contour.flat * rng.uniform(0.92, 1.08))


def _draw_contour(rng: Rng, layer: Layer, contour: Contour, main: Colour) -> None:
    curve = curve_of(contour, rng)
    second = hsv(rng.random(), rng.beta(2, 1.5), rng.uniform(0.2, 1.0))
    fill(layer, curve, main)
    if rng.random() < 0.4:
        stroke(layer, np.concatenate([curve, curve[:1]]), rng.uniform(0.03, 0.09), shaded(main, rng.choice([0.4, 1.6])))
    for number, ring in enumerate(contour.rings):
        tint(layer, curve * ring, second if number % 2 == 0 else main)
    if contour.hole:
        side = len(layer.cover)
        hole = make_layer(side, (0, 0, 0), layer.matrix)
        fill(hole, curve * 0.35, (0, 0, 0))
        cv2.subtract(layer.cover, hole.cover, dst=layer.cover)


# --- Figures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A shape and the rule that repeats it."""

    rim: Points  # its root at (0, 0), reaching along +x to 1
    layout: str  # radial, pair, row or single
    count: int
    place: tuple[float, float]
    angle: float
    length: float
    role: int  # which of the image's colours
    behind: bool
    rib: bool


@dataclass(frozen=True)
class Figure:
    """A body with parts."""

    body: Points
    parts: tuple[Part, ...]
    bands: int
    dots: int
    eyes: int


@functools.lru_cache(maxsize=4096)
def figure_of(label: int) -> Figure:
    """The class's body plan."""
    rng = _rng_of(label, "figure")
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radius = np.ones(48)
    for frequency in (1, 2, 3, 5):
        radius = radius + rng.normal(0, 0.13 / math.sqrt(frequency)) * np.cos(frequency * angle)  # even in y: bilateral
    squareness = rng.uniform(0.5, 1.3)
    body = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** squareness,
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** squareness,
        ],
        1,
    )
    body = body * radius[:, None] * (rng.uniform(0.3, 0.65), rng.uniform(0.18, 0.5))
    parts = tuple(_make_part(rng) for _ in range(rng.integers(2, 5)))
    return Figure(
        body, parts, int(rng.choice([0, 0, 2, 3, 4])), int(rng.choice([0, 0, 5, 12])), int(rng.choice([0, 0, 1, 2]))
    )


def _make_part(rng: Rng) -> Part:
    t = np.linspace(0, math.pi, 12)
    along = (1 - np.cos(t)) / 2
    kind = rng.integers(5)
    width = rng.uniform(0.12, 0.5)
    if kind == 0:  # a blade
        across = width * np.sin(t) ** rng.uniform(0.5, 1.6)
    elif kind == 1:  # a drop, wider to its end
        across = width * np.sin(t) * (0.25 + along)
    elif kind == 2:  # a wedge
        across = width * along * (t < 3.1) + 0.02
    elif kind == 3:  # a bar
        across = np.full(12, width * 0.35)
    else:  # a spike
        across = width * (1 - along)
    bend = rng.uniform(-0.4, 0.4) * along**2
    rim = np.concatenate([np.stack([along, bend - across], 1), np.stack([along, bend + across], 1)[::-1]])
    if rng.random() < 0.25:  # toothed or forked
        rim = rim * (1 + 0.12 * np.cos(np.arange(len(rim)) * math.pi)[:, None])
    layout = str(rng.choice(["radial", "pair", "row", "single"], p=[0.3, 0.35, 0.2, 0.15]))
    count = int(rng.integers(3, 14)) if layout == "radial" else int(rng.integers(3, 9))
    place = (rng.uniform(-0.5, 0.5), rng.uniform(0, 0.25))
    length = rng.uniform(0.35, 1.0) if layout != "row" else rng.uniform(0.25, 0.6)
    return Part(
        rim,
        layout,
        count,
        place,
        rng.uniform(-math.pi, math.pi),
        length,
        int(rng.integers(3)),
        bool(rng.random() < 0.7),
        bool(rng.random() < 0.3),
    )


def _draw_figure(rng: Rng, layer: Layer, figure: Figure, main: Colour) -> None:
    second = hsv(rng.random(), rng.beta(2, 1.5), rng.uniform(0.2, 1.0))
    third = shaded(main, rng.choice([0.5, 1.45])) if rng.random() < 0.5 else hsv(rng.random(), 0.5, rng.uniform(0.1, 1))
    palette = (main, second, third)
    stretch = rng.uniform(0.85, 1.18, 2)
    body = figure.body * stretch
    for part in figure.parts:
        if part.behind:
            _draw_part(rng, layer, part, palette[part.role])
    fill(layer, body, main)
    if figure.bands:
        rim = np.abs(body[:, 1]).max()
        for place in np.linspace(-0.6, 0.6, figure.bands) * body[:, 0].max():
            line = np.array([[place, -rim * 0.85], [place + 0.05, 0], [place, rim * 0.85]])
            stroke(layer, line, 0.07, third, covers=False)
    for _ in range(figure.dots):
        x, y = rng.uniform(-0.6, 0.6, 2)
        radius = rng.uniform(0.025, 0.06)
        tint(layer, ellipse(x * body[:, 0].max(), y * body[:, 1].max(), radius, radius, steps=8), second)
    for part in figure.parts:
        if not part.behind:
            _draw_part(rng, layer, part, palette[part.role])
    for number in range(figure.eyes):
        x, y = 0.6 * body[:, 0].max(), (0.4 if number else -0.4) * body[:, 1].max()
        fill(layer, ellipse(x, y, 0.07, 0.07, steps=10), (240, 240, 235))
        fill(layer, ellipse(x, y, 0.035, 0.035, steps=8), (15, 15, 20))


def _draw_part(rng: Rng, layer: Layer, part: Part, colour: Colour) -> None:
    length = part.length * rng.uniform(0.88, 1.12)
    rim = part.rim * length
    wobble = rng.uniform(-0.15, 0.15)
    x, y = part.place
    copies: list[Points] = []
    spine = np.array([[0.1, 0.0], [0.8, 0.0]]) * length
    if part.layout == "radial":
        step = 2 * math.pi / part.count
        angles = [step * k + part.angle + rng.normal(0, 0.04) for k in range(part.count)]
        places = [(0.0, 0.0)] * part.count
        mirrored = [False] * part.count
    elif part.layout == "pair":
        angles, places, mirrored = [part.angle + wobble] * 2, [(x, y)] * 2, [False, True]
    elif part.layout == "row":
        at = np.linspace(-0.55, 0.55, part.count)
        angles, places, mirrored = [part.angle + wobble] * part.count, [(float(p), y) for p in at], [False] * part.count
    else:
        angles, places, mirrored = [part.angle + wobble], [(x, 0.0)], [False]
    for angle, (at_x, at_y), mirror in zip(angles, places, mirrored, strict=True):
        flip = (1.0, -1.0) if mirror else (1.0, 1.0)
        copies.append(turned(rim, angle, at_x, at_y) * flip)
        fill(layer, copies[-1], shaded(colour, rng.uniform(0.85, 1.08)))
        if part.rib:
            stroke(layer, turned(spine, angle, at_x, at_y) * flip, 0.03, shaded(colour, 0.6), covers=False)


# --- Textures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texture:
    """A scalar pattern of the plane; the image maps it to colours."""

    kind: str  # waves, spots, cells or noise
    waves: tuple[tuple[float, float, float], ...]  # frequency (cycles per image), direction, weight
    warp: float
    sharp: float
    fold: int


@functools.lru_cache(maxsize=4096)
def texture_of(label: int) -> Texture:
    """The class's pattern."""
    rng = _rng_of(label, "texture")
    kind = str(rng.choice(["waves", "spots", "cells", "noise"]))
    base = rng.uniform(3, 11)
    fold = int(rng.choice([1, 2, 2, 3, 4, 5]))
    waves = tuple(
        (base * rng.choice([1, 1, 2, 0.5]), rng.uniform(0, math.pi), rng.uniform(0.4, 1))
        for _ in range(rng.integers(1, 4))
    )
    return Texture(kind, waves, float(rng.choice([0, rng.uniform(0.05, 0.3)])), rng.uniform(0.4, 5), fold)


def _lay_texture(rng: Rng, image: Image, texture: Texture) -> Image:
    size = len(image)
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    turn, zoom = rng.uniform(-math.pi, math.pi), rng.uniform(0.8, 1.25)
    c, s = np.float32(math.cos(turn) * zoom), np.float32(math.sin(turn) * zoom)
    u = line[None, :] * c - line[:, None] * s
    v = line[None, :] * s + line[:, None] * c
    if texture.warp:
        u = u + make_noise(rng, size, (4, 7)) * np.float32(texture.warp * 0.35)
        v = v + make_noise(rng, size, (4, 7)) * np.float32(texture.warp * 0.35)
    values = _pattern(rng, texture, u, v)
    values = np.tanh(values * np.float32(texture.sharp * rng.uniform(0.8, 1.25))) * np.float32(0.5) + np.float32(0.5)
    first = np.array(hsv(rng.random(), rng.beta(2, 2), rng.uniform(0.05, 0.6)), np.float32)
    second = np.array(hsv(rng.random(), rng.beta(2, 2), rng.uniform(0.5, 1)), np.float32)
    painted: Image = cv2.merge([first[k] + (second[k] - first[k]) * values for k in range(3)])
    if rng.random() < 0.35:
        return painted
    # On a body: a blob that the light rounds.
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.1) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    layer = make_layer(size, (0, 0, 0), make_pose(rng, size, (0.75, 1.15), drift=1.0))
    fill(layer, polar(np.asarray(radius) * 0.9), (0, 0, 0))
    layer.colours[:] = painted
    return lay(rng, image, layer, rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.8))


def _pattern(rng: Rng, texture: Texture, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    total = np.zeros_like(u)
    if texture.kind == "noise":
        frequency, direction, weight = texture.waves[0]
        cells = max(4, int(2.2 * frequency))
        flat = max(3, int(cells * (0.25 + 0.75 * weight)))
        grid = rng.standard_normal((flat, cells)).astype(np.float32)
        across = (u * math.cos(direction) + v * math.sin(direction)) * np.float32(0.66) + np.float32(0.5)
        down = (v * math.cos(direction) - u * math.sin(direction)) * np.float32(0.66) + np.float32(0.5)
        at_x = (across * np.float32(cells - 1)).astype(np.float32)
        at_y = (down * np.float32(flat - 1)).astype(np.float32)
        field: NDArray[np.float32] = cv2.remap(grid, at_x, at_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        return field
    for frequency, direction, weight in texture.waves:
        for k in range(texture.fold):
            angle = direction + math.pi * k / texture.fold
            along = u * np.float32(math.cos(angle)) + v * np.float32(math.sin(angle))
            wave = np.sin(along * np.float32(2 * math.pi * frequency) + np.float32(rng.uniform(0, 6.3)))
            if texture.kind == "cells":
                total = np.maximum(total, np.abs(wave) * np.float32(weight))
            else:
                total = total + wave * np.float32(weight)
    if texture.kind == "cells":
        return (total - np.float32(0.8)) * np.float32(3)
    if texture.kind == "spots":
        return np.abs(total) - np.float32(0.8)
    return total
