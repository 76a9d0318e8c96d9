"""The target set: eight things a person can name, each drawn in many ways. Frozen: see docs/bundled-base.md."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frostline.images.generated.scenes import (
    Colour,
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
    make_pose,
    photograph,
    shaded,
    stroke,
    tint,
    turned,
)

Rng = np.random.Generator


def draw_thing(name: str, rng: Rng, size: int) -> NDArray[np.uint8]:
    """One image of the thing: uint8 (size, size, 3), on a random ground, partly hidden, unevenly lit."""
    image = make_background(rng, size)
    image = add_clutter(rng, image, int(rng.integers(0, 4)), (0.1, 0.38))
    thing = THINGS[name]
    main = _main_colour(rng, thing.hues)
    layer = make_layer(size, main, make_pose(rng, size, (0.75, 1.02), thing.turn, drift=0.9))
    thing.draw(rng, layer, main)
    if rng.random() < 0.7:
        add_texture(rng, layer, rng.uniform(0.05, 0.25))
    image = lay(rng, image, layer, rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.7))
    if rng.random() < 0.5:
        image = add_clutter(rng, image, int(rng.integers(1, 3)), (0.12, 0.34))
    return photograph(rng, image, hardness=0.55)


def _main_colour(rng: Rng, hues: tuple[float, ...]) -> Colour:
    """A colour of the thing's own where it has one, in most images; else any."""
    hue = rng.random()
    if hues and rng.random() < 0.85:
        hue = rng.choice(hues) + rng.normal(0, 0.03)
    return hsv(hue, rng.beta(2.5, 1.8), rng.uniform(0.5, 1.0))


def _second(rng: Rng) -> Colour:
    return hsv(rng.random(), rng.beta(2, 1.5), rng.uniform(0.3, 1.0))


def _butterfly(rng: Rng, layer: Layer, main: Colour) -> None:
    second, dark = _second(rng), hsv(rng.random(), 0.4, rng.uniform(0.05, 0.25))
    opening = rng.uniform(0.62, 1.0)
    t = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    tip, waist = rng.uniform(0.5, 0.8), rng.uniform(0.25, 0.4)
    # A wing: a drop whose narrow end sits at the body; wavy at the rim.
    drop = np.stack([(1 - np.cos(t)) / 2, np.sin(t) * np.sin(t / 2) ** rng.uniform(0.8, 1.6)], 1)
    scallops = 1 + rng.uniform(0, 0.06) * np.cos(t * rng.integers(6, 11))[:, None]
    upper = turned(drop * scallops * (1.0, 0.42), -tip)
    lower = turned(drop * scallops * (rng.uniform(0.65, 0.85), rng.uniform(0.3, 0.42)), waist + rng.uniform(0.2, 0.5))
    tail = rng.random() < 0.35
    spots = [
        (rng.uniform(0.5, 0.82), rng.uniform(-0.12, 0.12), rng.uniform(0.04, 0.1)) for _ in range(rng.integers(1, 5))
    ]
    for side in (-1.0, 1.0):
        flip = np.array([side * opening, 1.0])
        for wing, angle, colour in ((lower, waist + 0.35, shaded(main, 0.85)), (upper, -tip, main)):
            if tail and wing is lower:
                stroke(layer, turned(np.array([[0.4, 0], [0.95, 0.05]]), angle) * flip, 0.09, dark)
            fill(layer, wing * flip, dark)
            fill(layer, (wing * 0.86 + turned(np.array([[0.05, 0.0]]), angle)) * flip, colour)
            fill(layer, (wing * 0.45 + turned(np.array([[0.06, 0.0]]), angle)) * flip, second)
            for x, y, radius in spots:
                tint(
                    layer,
                    turned(ellipse(x, y, radius, radius, steps=10), angle) * flip,
                    second if radius > 0.07 else dark,
                )
        feeler = np.array([[0.02, -0.3], [0.1, -0.55], [rng.uniform(0.15, 0.3), -0.72]]) * flip
        stroke(layer, feeler, 0.025, dark)
    fill(layer, ellipse(0, 0.05, 0.065, 0.42), dark)
    fill(layer, ellipse(0, -0.34, 0.085, 0.085), shaded(dark, 1.15))


def _fish(rng: Rng, layer: Layer, main: Colour) -> None:
    second = _second(rng)
    height, pointed = rng.uniform(0.26, 0.58), rng.uniform(0.6, 1.3)
    t = np.linspace(0, math.pi, 24)
    x = -0.85 + 1.3 * (1 - np.cos(t)) / 2  # nose at -0.85, root of the tail at 0.45
    half = height * np.sin(t) ** pointed + 0.06 * (t / math.pi)
    body = np.concatenate([np.stack([x, -half], 1), np.stack([x, half], 1)[::-1]])
    fork, spread = rng.uniform(-0.1, 0.3), rng.uniform(0.28, 0.55)
    tail = np.array([[0.38, -0.06], [0.92, -spread], [0.92 - fork, 0.0], [0.92, spread], [0.38, 0.06]])
    fin = shaded(second, rng.uniform(0.7, 1.1))
    fill(layer, tail, fin)
    start, end, peak = rng.uniform(-0.4, -0.1), rng.uniform(0.15, 0.35), rng.uniform(0.18, 0.4)
    fill(
        layer, np.array([[start, -height * 0.8], [rng.uniform(start, end), -height - peak], [end, -height * 0.4]]), fin
    )
    if rng.random() < 0.7:
        fill(layer, np.array([[start + 0.2, height * 0.8], [end, height + peak * 0.7], [end, height * 0.4]]), fin)
    fill(layer, body, main)
    belly = np.concatenate([np.stack([x, half * 0.35], 1), np.stack([x, half], 1)[::-1]])
    tint(layer, belly, shaded(main, rng.uniform(1.1, 1.5)))
    pattern = rng.integers(4)
    if pattern == 0:
        for place in np.linspace(-0.3, 0.35, rng.integers(2, 5)):
            at = np.interp(place, x, half) * 0.97
            stroke(
                layer,
                np.array([[place, -at], [place + 0.06, 0], [place, at]]),
                rng.uniform(0.06, 0.12),
                second,
                covers=False,
            )
    elif pattern == 1:
        for _ in range(rng.integers(5, 14)):
            place = rng.uniform(-0.4, 0.35)
            radius = rng.uniform(0.025, 0.07)
            tint(
                layer,
                ellipse(place, rng.uniform(-0.7, 0.6) * np.interp(place, x, half), radius, radius, steps=10),
                second,
            )
    elif pattern == 2:
        stroke(layer, np.array([[-0.5, 0.0], [0.45, 0.0]]), rng.uniform(0.06, 0.16), second, covers=False)
    gill = -0.45
    at = np.interp(gill, x, half)
    stroke(
        layer, np.array([[gill, -at * 0.7], [gill + 0.09, 0], [gill, at * 0.7]]), 0.035, shaded(main, 0.6), covers=False
    )
    fill(layer, np.array([[-0.3, 0.06], [-0.05, 0.02], [-0.02, 0.24]]), fin)
    eye = rng.uniform(0.055, 0.09)
    fill(layer, ellipse(-0.62, -0.3 * np.interp(-0.62, x, half), eye, eye, steps=14), (245, 245, 235))
    fill(layer, ellipse(-0.63, -0.3 * np.interp(-0.62, x, half), eye * 0.55, eye * 0.55, steps=10), (15, 15, 20))


def _flower(rng: Rng, layer: Layer, main: Colour) -> None:
    petals = int(rng.integers(5, 13))
    if rng.random() < 0.4:
        green = hsv(rng.uniform(0.22, 0.4), rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.6))
        bend = rng.uniform(-0.4, 0.4)
        stem = np.array([[0, 0.1], [bend * 0.3, 0.6], [bend, 1.3]])
        stroke(layer, stem, 0.09, green)
        fill(layer, turned(_blade(0.5, 0.35), rng.uniform(-0.6, 0.2), bend * 0.4, 0.8), green)
    width = rng.uniform(0.75, 1.35) * math.pi / petals
    length, notch = rng.uniform(0.62, 0.92), rng.uniform(0.0, 0.14)
    t = np.linspace(0, math.pi, 13)
    blunt = rng.uniform(0.5, 1.1)
    along = length * (1 - np.cos(t)) / 2
    across = width * 0.5 * np.sin(t) ** blunt * (0.35 + 0.65 * along / length)
    along = along - notch * np.exp(-(((t - math.pi) / 0.35) ** 2))
    petal = np.concatenate([np.stack([along, -across], 1), np.stack([along, across], 1)[::-1]])
    rings = 2 if rng.random() < 0.35 else 1
    for ring in range(rings):
        size = 1.0 - 0.35 * ring
        colour = shaded(main, 1.0 + 0.2 * ring)
        for number in range(petals):
            angle = 2 * math.pi * (number + 0.5 * ring) / petals + rng.normal(0, 0.04)
            tone = rng.uniform(0.82, 1.08)
            fill(layer, turned(petal * size, angle), shaded(colour, tone))
            stroke(
                layer,
                turned(np.array([[0.15, 0.0], [length * size * 0.75, 0.0]]), angle),
                0.03,
                shaded(colour, tone * 0.75),
                covers=False,
            )
    heart = hsv(rng.uniform(0.02, 0.2), rng.uniform(0.5, 1.0), rng.uniform(0.3, 1.0))
    radius = rng.uniform(0.12, 0.28)
    fill(layer, ellipse(0, 0, radius, radius), heart)
    for _ in range(int(radius * 60)):
        r, angle = radius * math.sqrt(rng.random()) * 0.9, rng.uniform(0, 6.3)
        tint(
            layer,
            ellipse(r * math.cos(angle), r * math.sin(angle), 0.03, 0.03, steps=6),
            shaded(heart, rng.uniform(0.6, 1.3)),
        )


def _blade(length: float, width: float, blunt: float = 1.0) -> Points:
    t = np.linspace(0, math.pi, 13)
    along = length * (1 - np.cos(t)) / 2
    across = length * width * np.sin(t) ** blunt * 0.5
    return np.concatenate([np.stack([along, -across], 1), np.stack([along, across], 1)[::-1]])


def _jellyfish(rng: Rng, layer: Layer, main: Colour) -> None:
    width, height = rng.uniform(0.5, 0.75), rng.uniform(0.45, 0.75)
    second = shaded(main, rng.uniform(0.6, 1.4))
    count = int(rng.integers(5, 11))
    swing, phase = rng.uniform(0.03, 0.1), rng.uniform(0, 6.3)
    t = np.linspace(0, 1, 14)
    for place in np.linspace(-0.85, 0.85, count):
        reach = rng.uniform(0.6, 1.15)
        wave = swing * np.sin(t * rng.uniform(6, 11) + phase + place) * t**0.5
        lean = rng.uniform(-0.15, 0.15) + 0.15 * place
        line = np.stack([place * width + wave + lean * t, t * reach - 0.05], 1)
        stroke(layer, line, rng.uniform(0.03, 0.07), shaded(second, rng.uniform(0.8, 1.2)))
    for place in rng.uniform(-0.3, 0.3, rng.integers(1, 4)):
        line = np.stack([place * width + 1.5 * swing * np.sin(t * 14 + phase), t * rng.uniform(0.4, 0.7)], 1)
        stroke(layer, line, 0.12, shaded(main, 1.25))
    angle = np.linspace(math.pi, 2 * math.pi, 24)
    dome = np.stack([width * np.cos(angle), height * np.sin(angle)], 1)
    hem = np.linspace(1, -1, 33)[1:-1]
    lobes = int(rng.integers(4, 8))
    rim = np.stack([hem * width, 0.07 * np.abs(np.sin(hem * lobes * math.pi / 2)) + 0.02], 1)
    bell = np.concatenate([dome, rim])
    fill(layer, bell, main)
    tint(layer, bell * (0.62, 0.7) - (0, height * 0.18), shaded(main, rng.uniform(1.15, 1.5)))
    if rng.random() < 0.6:
        for place in np.linspace(-0.7, 0.7, rng.integers(3, 7)):
            line = np.stack([place * width * np.linspace(0.3, 1, 6), np.linspace(-height * 0.8, 0, 6)], 1)
            stroke(layer, line, 0.03, second, covers=False)
    else:
        for _ in range(rng.integers(3, 8)):
            radius = rng.uniform(0.03, 0.08)
            tint(
                layer,
                ellipse(rng.uniform(-0.6, 0.6) * width, rng.uniform(-0.7, -0.15) * height, radius, radius, steps=10),
                second,
            )


def _leaf(rng: Rng, layer: Layer, main: Colour) -> None:
    vein = shaded(main, rng.choice([0.6, 1.4]))
    stroke(
        layer,
        np.array([[0, 0.55], [rng.uniform(-0.1, 0.1), 0.8], [rng.uniform(-0.25, 0.25), 1.05]]),
        0.07,
        shaded(main, 0.7),
    )
    if rng.random() < 0.55:
        # A single blade, smooth or toothed, its stalk below.
        half, belly = rng.uniform(0.28, 0.58), rng.uniform(0.7, 1.4)
        t = np.linspace(0, 1, 60)
        teeth = rng.choice([0.0, rng.uniform(0.03, 0.09)])
        wide = half * np.sin(math.pi * t**belly) ** rng.uniform(0.7, 1.1)
        wide = wide * (1 - teeth * 2 * ((t * rng.integers(7, 14)) % 1.0))
        bend = rng.uniform(-0.25, 0.25)
        spine = np.stack([bend * np.sin(math.pi * t), 0.6 - 1.5 * t], 1)
        fill(
            layer,
            np.concatenate([spine + np.stack([wide, 0 * t], 1), (spine - np.stack([wide, 0 * t], 1))[::-1]]),
            main,
        )
        stroke(layer, spine[:54:4], 0.04, vein, covers=False)
        for k in range(6, 50, int(rng.integers(5, 8))):
            for side in (-1, 1):
                tip = spine[k] + (side * wide[min(k + 5, 59)] * 0.85, -0.13)
                stroke(layer, np.stack([spine[k], tip]), 0.022, vein, covers=False)
    else:
        # A lobed leaf (maple, oak, ivy): lobes about the stalk's end.
        lobes = int(rng.choice([3, 5, 7]))
        spread = rng.uniform(0.55, 0.8) * math.pi
        angles = np.linspace(-spread, spread, lobes) - math.pi / 2
        theta = np.linspace(-math.pi, math.pi, 120, endpoint=False)
        radius = np.full(120, rng.uniform(0.22, 0.38))
        sharp = rng.uniform(0.5, 1.2) * lobes**2 * 0.35
        reaches = rng.uniform(0.75, 1.0) * (1 - 0.3 * (np.abs(np.linspace(-1, 1, lobes)) ** 2))
        for angle, reach in zip(angles, reaches, strict=True):
            away = np.abs((theta - angle + math.pi) % (2 * math.pi) - math.pi)
            radius = np.maximum(radius, reach * np.exp(-sharp * away**2 * 0.6) * (1 - 0.08 * ((away * 12) % 1.0)))
        fill(layer, np.stack([radius * np.cos(theta), radius * np.sin(theta) + 0.25], 1), main)
        for angle, reach in zip(angles, reaches, strict=True):
            tip = np.array([math.cos(angle), math.sin(angle)]) * reach * 0.85
            stroke(layer, np.array([[0, 0.4], [0, 0.25], [tip[0], tip[1] + 0.25]]), 0.035, vein, covers=False)


def _mushroom(rng: Rng, layer: Layer, main: Colour) -> None:
    pale = hsv(rng.uniform(0.05, 0.16), rng.uniform(0.02, 0.35), rng.uniform(0.6, 1.0))
    top, bottom, bend = rng.uniform(0.1, 0.2), rng.uniform(0.13, 0.3), rng.uniform(-0.15, 0.15)
    stem = np.array(
        [
            [-top, -0.1],
            [top, -0.1],
            [bend + bottom * 0.9, 0.6],
            [bend + bottom, 0.85],
            [bend, 0.92],
            [bend - bottom, 0.85],
            [bend - bottom * 0.9, 0.6],
        ]
    )
    fill(layer, stem, pale)
    tint(layer, stem * (0.45, 1) + (0.06, 0), shaded(pale, 0.85))
    if rng.random() < 0.5:
        fill(
            layer,
            np.array([[-top * 1.1, 0.12], [top * 1.1, 0.12], [top * 2, 0.27], [0, 0.22], [-top * 2, 0.27]]),
            shaded(pale, 0.92),
        )
    width, height = rng.uniform(0.55, 0.9), rng.uniform(0.35, 0.85)
    pointed = rng.uniform(0.55, 1.25)
    angle = np.linspace(math.pi, 2 * math.pi, 26)
    cap = np.stack([width * np.cos(angle), -height * np.abs(np.sin(angle)) ** pointed], 1)
    sag = rng.uniform(0.03, 0.2)
    hem = np.stack([width * np.cos(angle[::-1]), sag * np.abs(np.sin(angle))], 1)
    fill(layer, np.concatenate([cap, hem]), main)
    if sag > 0.1:
        tint(layer, ellipse(0, 0, width * 0.97, sag), shaded(pale, 0.75))
        for place in np.linspace(-0.85, 0.85, 9):
            stroke(
                layer,
                np.array([[place * 0.25, 0.0], [place * width, sag * 0.75]]),
                0.02,
                shaded(pale, 0.55),
                covers=False,
            )
        fill(layer, np.array([[-top, 0.0], [top, 0.0], [top * 1.1, 0.25], [-top * 1.1, 0.25]]), pale)
    if rng.random() < 0.6:
        dot = pale if rng.random() < 0.7 else _second(rng)
        for _ in range(rng.integers(4, 12)):
            x, y = rng.uniform(-0.75, 0.75), rng.uniform(0.15, 0.85)
            radius = rng.uniform(0.03, 0.11)
            tint(layer, ellipse(x * width, -height * y * math.sqrt(1 - x * x), radius, radius * 0.75, steps=12), dot)


def _shell(rng: Rng, layer: Layer, main: Colour) -> None:
    second = shaded(main, rng.uniform(0.45, 0.75)) if rng.random() < 0.6 else _second(rng)
    if rng.random() < 0.5:
        # A snail's house: discs along a logarithmic spiral, the outer whorls first and the inner ones on top.
        turns, growth = rng.uniform(2.4, 3.4), rng.uniform(0.13, 0.19)
        theta = np.linspace(2 * math.pi * turns, 0, 54)
        radius = np.exp(growth * (theta - theta[0]))
        x, y = 0.55 * radius * np.cos(theta), 0.55 * radius * np.sin(theta)
        stripe = int(rng.integers(2, 6))
        rim = shaded(second, 0.5)
        for number, r in enumerate(radius):
            fill(layer, ellipse(x[number], y[number], 0.4 * r + 0.02, 0.4 * r + 0.02, steps=14), rim)
            tone = 0.85 + 0.3 * (number % stripe) / stripe
            fill(
                layer,
                ellipse(x[number], y[number], 0.4 * r - 0.02, 0.4 * r - 0.02, steps=14),
                shaded(main if (number // stripe) % 2 else second, tone),
            )
            if number == 0:
                fill(layer, ellipse(x[0], y[0], 0.3, 0.24, theta[0]), shaded(main, 0.3))
        groove = np.stack([x, y], 1) * 0.62
        stroke(layer, groove[6:], 0.035, rim, covers=False)
    else:
        # A scallop: a fan of ribs above a hinge.
        ribs = int(rng.integers(7, 14))
        spread = rng.uniform(0.9, 1.35)
        fill(layer, np.array([[-0.3, 0.5], [0.3, 0.5], [0.22, 0.78], [-0.22, 0.78]]), shaded(main, 0.8))
        edges = np.linspace(-spread, spread, ribs + 1)
        centre, reach = np.array([0.0, 0.65]), rng.uniform(1.25, 1.45)
        for left, right in itertools.pairwise(edges):
            fan = np.linspace(left, right, 6)
            bulge = 1 + 0.05 * np.sin(np.linspace(0, math.pi, 6))
            lip = centre + (
                np.stack([np.sin(fan), -np.cos(fan)], 1)
                * (reach * (1 - 0.12 * np.abs(fan / spread) ** 2) * bulge)[:, None]
            )
            fill(layer, np.concatenate([[centre], lip]), shaded(main, rng.uniform(0.9, 1.1)))
            middle = (left + right) / 2
            stroke(layer, np.stack([centre, lip[0]]), 0.035, shaded(main, 0.6), covers=False)
            stroke(
                layer,
                np.stack([centre, centre + np.array([math.sin(middle), -math.cos(middle)]) * reach * 0.9]),
                0.03,
                shaded(main, 1.3),
                covers=False,
            )
        for share in rng.uniform(0.35, 0.9, rng.integers(0, 4)):
            fan = np.linspace(-spread, spread, 24)
            band = (
                centre
                + np.stack([np.sin(fan), -np.cos(fan)], 1)
                * (reach * share * (1 - 0.12 * np.abs(fan / spread) ** 2))[:, None]
            )
            stroke(layer, band, rng.uniform(0.03, 0.1), second, covers=False)


def _starfish(rng: Rng, layer: Layer, main: Colour) -> None:
    arms = 5 if rng.random() < 0.8 else int(rng.integers(6, 8))
    theta = np.linspace(0, 2 * math.pi, 20 * arms, endpoint=False)
    waist, sharp = rng.uniform(0.28, 0.42), rng.uniform(1.3, 2.6)
    lengths = rng.uniform(0.78, 1.0, arms)
    wave = np.abs(np.cos(theta * arms / 2)) ** sharp
    reach = lengths[np.round(theta * arms / (2 * math.pi)).astype(int) % arms]
    bend = rng.uniform(-0.25, 0.25)
    radius = waist + (reach - waist) * wave
    angle = theta + bend * radius
    rim = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    fill(layer, rim, shaded(main, 0.8))
    fill(layer, rim * 0.9, main)
    dot = shaded(main, rng.choice([0.55, 1.5])) if rng.random() < 0.7 else _second(rng)
    pattern = rng.integers(3)
    for number in range(arms):
        at = 2 * math.pi * number / arms
        along = np.linspace(0.08, lengths[number] * 0.85, 8)
        line = np.stack([along * np.cos(at + bend * along), along * np.sin(at + bend * along)], 1)
        if pattern == 0:
            stroke(layer, line, 0.05, dot, covers=False)
        else:
            for k, (x, y) in enumerate(line):
                r = 0.055 * (1 - 0.07 * k)
                tint(layer, ellipse(x, y, r, r, steps=8), dot)
    if pattern == 2:
        for _ in range(25):
            r, at = rng.uniform(0.1, 0.4), rng.uniform(0, 6.3)
            tint(layer, ellipse(r * math.cos(at), r * math.sin(at), 0.03, 0.03, steps=6), dot)


@dataclass(frozen=True)
class Thing:
    """How a thing is drawn, how far it may turn (± radians) from upright, and the hues it likes; empty = any."""

    draw: Callable[[Rng, Layer, Colour], None]
    turn: float
    hues: tuple[float, ...] = ()


THINGS: dict[str, Thing] = {
    "butterfly": Thing(_butterfly, 1.2, (0.07, 0.14, 0.6)),
    "fish": Thing(_fish, 0.7),
    "flower": Thing(_flower, math.pi, (0.0, 0.8, 0.9, 0.15)),
    "jellyfish": Thing(_jellyfish, 0.7, (0.55, 0.65, 0.85)),
    "leaf": Thing(_leaf, 1.2, (0.09, 0.25, 0.3, 0.35)),
    "mushroom": Thing(_mushroom, 0.6, (0.0, 0.05, 0.1)),
    "shell": Thing(_shell, 1.2, (0.05, 0.1, 0.95)),
    "starfish": Thing(_starfish, math.pi, (0.02, 0.06, 0.72)),
}
