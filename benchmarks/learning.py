"""What the final model gains over simpler ways to learn from few images, over sets, bases and draws.

    python benchmarks/learning.py [--shared ../shared] [--sets cats:25 ...] [--bases lite0@96 ...] [--draws 10] [--plain 2] [--out FILE]
    python benchmarks/learning.py --table FILE [--write]

Every draw takes other images to train on; what is tested on stays. All ways but `plain Keras` learn from the same stored features
with the same hyperparameters, fixed beforehand, so that no search hides a difference. The ways:

    bare head             a linear head on the last cut
    every cut             a linear head on every cut
    one fit               a tail from the bare head, trained on four fifths, its best epoch on the fifth; the product until 2026-11-21
    weights averaged      five folds' tails, one network with the mean of their weights
    folds                 five folds' tails, mean probability
    folds, mirrored       and of the mirror image
    product               what `refit` makes: folds, head on every cut, mirror image and temperature, by out-of-fold log loss
    plain Keras           head alone, then the upper blocks unfrozen, AdamW, cosine, augmentation in the model, all images
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from results import Lines, add_options, draw_table, keep, load_lines
from scipy import stats
from scipy.special import softmax
from workloads import TRANSFORMS

BASES: dict[
    str, tuple[str, dict[str, Any], str, int]
] = {  # family, options, weights (files below ../shared), image size
    "v2-0.35@96": ("MobileNetV2", {"alpha": 0.35}, "weights/mobilenet_v2_035/mobilenet_v2_035_notop.weights.h5", 96),
    "v2-1.0@160": ("MobileNetV2", {}, "weights/mobilenet_v2_100/mobilenet_v2_100_notop.weights.h5", 160),
    "lite0@96": ("EfficientNetLite0", {}, "package", 96),
    "lite0@128": ("EfficientNetLite0", {}, "package", 128),
}
SETS = ("cats:25", "cats:50", "cats:100", "cats:250", "horses:25", "horses:50", "horses:100", "generated:30")
TESTED = {"cats": 250, "horses": 125, "generated": 50}  # of each class
DEPTH, EPOCHS, VIEWS, FOLDS = 4, 8, 8, 5
WAYS = (
    *("bare head", "every cut", "one fit", "weights averaged", "folds", "folds, mirrored", "product", "plain Keras"),
)
OLD = "one fit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--sets", nargs="+", default=SETS, help="NAME:IMAGES_PER_CLASS")
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=BASES)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--plain", type=int, default=2, help="draws on which plain Keras learns, too")
    parser.add_argument(
        "--out", type=Path, default=Path("learning.jsonl"), help="a line per way and draw; goes on where it ended"
    )
    parser.add_argument("--table", type=Path, help="only make the table of such a file")
    add_options(parser)
    given = parser.parse_args()
    if given.table is None:
        measure(given)
    lines = load_lines(given.table or given.out)
    print(make_table(lines))
    lost = [row for row in regret(lines) if row["candidates"] > 1]
    for row in lost:
        print(json.dumps(row))
    if lost:
        print(f"regret of the screening's choice: {np.mean([row['points'] for row in lost]):.2f} points on average")
    keep("learning", lines, given, make_table)


def measure(given: argparse.Namespace) -> None:
    out, shared = given.out.resolve(), given.shared.resolve()
    done = set()
    if out.is_file():
        done = {
            (line["base"], line["set"], line["draw"]) for line in map(json.loads, out.read_text("utf-8").splitlines())
        }
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        for base in given.bases:
            for name in given.sets:
                task = Task(base, name, shared)
                for draw in range(given.draws):
                    if (base, name, draw) in done:
                        continue
                    lines = task.learn(draw, plain=draw < given.plain)
                    with out.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(line) + "\n" for line in lines)
                    print(
                        base,
                        name,
                        draw,
                        {line["way"]: round(line["log_loss"], 3) for line in lines},
                        file=sys.stderr,
                        flush=True,
                    )


class Task:
    """One base on one set: images decoded once, one compiled prefix and one bench for all draws."""

    def __init__(self, base: str, name: str, shared: Path) -> None:
        from frostline.bases.extraction import Extractor
        from frostline.bases.files import fetch_weights
        from frostline.params import parse_params
        from frostline.training.bench import Bench

        self.name, self.base = name, base
        kind, per_class = name.split(":")
        self.per_class = int(per_class)
        family, options, weights, size = BASES[base]
        self.pool, self.test = load_images(shared, kind, size, self.per_class)
        self.num_classes = len(self.pool)
        chosen = {
            "name": family,
            "options": options,
            "image_size": size,
            "weights": weights if weights == "package" else str(shared / weights),
        }
        self.params = parse_params(make_params(chosen), "learning.py")
        shutil.rmtree("base", ignore_errors=True)
        fetch_weights(self.params.base, Path("base"), 7)
        self.bench = Bench(self.params, self.num_classes, {})
        self.extractor = Extractor(self.bench.base, [DEPTH], 64)

    def learn(self, draw: int, *, plain: bool) -> Lines:
        """A line for each way, on other images for each draw."""
        from frostline.training.bench import fit_heads
        from frostline.training.data import draw_folds

        rng = np.random.default_rng([7, draw])
        # Other images of the pool for each draw; a pool of photographs is soon drawn again.
        chosen = [rng.permutation(len(images))[: self.per_class] for images in self.pool]
        train = np.concatenate([images[rows] for images, rows in zip(self.pool, chosen, strict=True)])
        labels = np.repeat(np.arange(self.num_classes, dtype=np.int32), self.per_class)
        test = np.concatenate(self.test)
        test_labels = np.repeat(np.arange(self.num_classes, dtype=np.int32), [len(images) for images in self.test])
        self.store(train, labels, test, test_labels, draw)

        bench = self.bench
        bench._data.clear()
        rows, tested = np.arange(len(labels)), len(labels) + np.arange(len(test))
        folds = draw_folds(labels, np.arange(len(labels)), FOLDS, draw)
        started = time.process_time()
        bench.heads = fit_heads(bench, ("last", "all"), rows, folds)
        heads_s = time.process_time() - started
        answers = self.ways(rows, tested, folds, labels, draw, heads_s)
        if plain:
            answers["plain Keras"] = learn_plain(self.bench.base, train, labels, test, self.num_classes, draw)
        return [
            {
                "base": self.base,
                "set": self.name,
                "draw": draw,
                "way": way,
                "seconds": seconds,
                "accuracy": float((found.argmax(axis=1) == test_labels).mean()),
                "out_of_fold": bench.heads["all"].loss,  # what a screening chooses by
                "log_loss": float(-np.log(np.maximum(found[np.arange(len(test)), test_labels], 1e-12)).mean()),
            }
            for way, (found, seconds) in answers.items()
        ]

    def store(self, train: Any, labels: Any, test: Any, test_labels: Any, draw: int) -> None:
        """`train`, and in the place of `val` what is tested on, as the stages would leave them."""
        from frostline.arrays import load_split, save_split
        from frostline.bases.extraction import list_sources
        from frostline.bases.features import POOLED, depth_folder
        from frostline.files import mark_complete
        from frostline.images.views import Drawing, save_views

        for folder in ("prepared", "views", "features"):
            shutil.rmtree(folder, ignore_errors=True)
        size = train.shape[1]
        for split, images, its in (("train", train, labels), ("val", test, test_labels)):
            save_split(Path("prepared") / split, [images], size, its, [f"{split}-{draw}-{n}" for n in range(len(its))])
        mark_complete(Path("prepared"), num_images={"train": len(labels), "val": len(test_labels), "test": 0})
        file = Path("prepared/train/images.npy")
        drawing = Drawing((file,), load_split(Path("prepared/train")).digests, TRANSFORMS, 7)
        list(save_views(drawing, Path("views"), num_views=VIEWS, workers=1))
        stored, tested = (load_split(Path("prepared") / split) for split in ("train", "val"))
        sources = list_sources(stored, tested, Path("views"), VIEWS, mirrored=True)
        list(self.extractor.save(sources, Path("features"), [depth_folder(DEPTH), POOLED]))
        mark_complete(Path("features"), stored=[DEPTH], depths=[DEPTH], num_images=len(labels), views=VIEWS)

    def ways(
        self, rows: NDArray[np.intp], tested: NDArray[np.intp], folds: Any, labels: Any, draw: int, heads_s: float
    ) -> dict[str, tuple[NDArray[np.float64], float]]:
        """Way -> probabilities of the tested images, and processor seconds of all that it had to fit."""
        from frostline.devices import ops
        from frostline.evidence.calibration import apply_temperature
        from frostline.evidence.trials import TrialRecord
        from frostline.hparams import Hparams
        from frostline.training.model import Members
        from frostline.training.refit import (
            BARE,
            EVERY_CUT,
            answer_of_parts,
            choose,
            cross_fit_head,
            cross_fit_trial,
            make_members,
        )

        bench, share = self.bench, heads_s / 2

        def answer(members: Members, mirrored: bool = False) -> NDArray[np.float64]:
            found = [
                answer_of_parts(bench, members, tested, mirror) for mirror in ([False, True] if mirrored else [False])
            ]
            return np.mean(found, axis=0)  # type: ignore[no-any-return]

        def head(sees: str) -> Members:
            return Members(None, [], None, [bench.heads[sees].whole], sees, 0.0)

        facts: dict[str, Any] = {
            "dropout": 0.2,
            "head_learning_rate": 1e-4,
            "suffix_learning_rate": 3e-4,
            "weight_decay": 1e-4,
        }
        facts |= {"label_smoothing": 0.0, "optimizer": "adam", "head_units": 0}
        old = Hparams.from_record({"unfrozen_blocks": DEPTH, "head_input": "last", **facts})
        new = Hparams.from_record({"unfrozen_blocks": DEPTH, "head_input": "all", **facts})
        found = {"bare head": (answer(head("last")), share), "every cut": (answer(head("all")), share)}

        started = time.process_time()
        split = (rows[folds != 0], rows[folds == 0])
        start = bench.start_head(old, draw, 0)
        fitted = bench.train(old, draw, rows=split, head=start)
        state = fitted.best_state or fitted.state
        params = [np.asarray(ops.convert_to_numpy(value)) for value in state.params]
        members = Members(bench.trainer(old), [params], start, [], "last", 1.0)
        found[OLD] = (answer(members), share + time.process_time() - started)

        started = time.process_time()
        work = Path("work")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        tails = cross_fit_trial(bench, TrialRecord(draw, new, "COMPLETE"), rows, folds, work)
        seconds = share + time.process_time() - started
        start = bench.start_head(new, 0)
        mean = [np.mean(values, axis=0) for values in zip(*tails.tails, strict=True)]
        found["weights averaged"] = (answer(Members(bench.trainer(new), [mean], start, [], "all", 1.0)), seconds)
        every = Members(bench.trainer(new), tails.tails, start, [], "all", 1.0)
        found["folds"] = (answer(every), seconds)
        found["folds, mirrored"] = (answer(every, mirrored=True), seconds)
        heads = {
            sees: cross_fit_head(bench, sees, name, rows, folds) for sees, name in (("last", BARE), ("all", EVERY_CUT))
        }
        choice = choose(labels, heads, [tails], [False, True])
        made = make_members(bench, choice, "mean", rows, work)
        mixed = apply_temperature(answer(made, mirrored=choice.mirrored), choice.temperature)
        found["product"] = (mixed, seconds + share)
        return found


def make_params(base: dict[str, Any]) -> dict[str, Any]:
    """All of params.yaml, with this base; what stages alone read is as by default."""
    from ruamel.yaml import YAML

    document: dict[str, Any] = YAML(typ="safe", pure=True).load(Path(__file__).parents[1] / "presets" / "default.yaml")
    document["base"] |= base
    document["paths"] |= {"base": "base", "prepared": "prepared", "views": "views", "features": "features"}
    document["augment"] |= {"views": VIEWS, "transforms": TRANSFORMS}
    document["tune"] |= {"epochs": EPOCHS, "batch_size": 32}
    document["tune"]["space"]["unfrozen_blocks"] = [0, DEPTH]
    document["refit"] |= {"folds": FOLDS, "train_on_val": "never"}
    return document


def load_images(shared: Path, kind: str, size: int, per_class: int) -> tuple[list[Any], list[Any]]:
    """Of each class the images to draw from, and those to test on, uint8 (n, size, size, 3)."""
    from frostline.images.decoding import decode_image
    from frostline.images.generated.sets import TARGET_CLASSES, draw_target
    from frostline.seeding import derive_seed

    tested = TESTED[kind]
    if kind == "generated":
        number = tested + 4 * per_class
        images = [
            np.stack([draw_target(label, derive_seed(7, n), size) for n in range(number)])
            for label in range(len(TARGET_CLASSES))
        ]
        return [each[tested:] for each in images], [each[:tested] for each in images]
    folder = shared / "data" / {"cats": "cats_vs_dogs", "horses": "horses_or_humans"}[kind]
    pools, tests = [], []
    for name in sorted(path.name for path in (folder / "train").iterdir()):
        # Both splits together: those of horses_or_humans are of two kinds.
        files = sorted([*(folder / "train" / name).iterdir(), *(folder / "validation" / name).iterdir()])
        order = np.random.default_rng(0).permutation(len(files))
        decoded = np.stack([decode_image(files[place].read_bytes(), size) for place in order[: tested + 4 * per_class]])
        pools.append(decoded[tested:])
        tests.append(decoded[:tested])
    return pools, tests


def learn_plain(
    base: Any, train: Any, labels: Any, test: Any, num_classes: int, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Plain Keras as its guides have it: the head first, then the upper blocks with AdamW and a cosine; BatchNorm stays frozen."""
    from frostline.bases.cuts import scale_pixels
    from frostline.devices import keras, layers

    started = time.process_time()
    keras.utils.set_random_seed(seed)
    network = keras.models.clone_model(base.model)
    network.set_weights(base.model.get_weights())
    pixels = keras.Input(train.shape[1:], dtype="uint8")
    x = layers.RandomFlip("horizontal")(pixels)
    for layer in (
        layers.RandomRotation(20 / 360, fill_mode="reflect"),
        layers.RandomZoom(0.2, fill_mode="reflect"),
        layers.RandomTranslation(0.1, 0.1, fill_mode="reflect"),
        layers.RandomBrightness(0.2),
        layers.RandomContrast(0.2),
    ):
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(network(scale_pixels(x, base.scaling), training=False))
    outputs = layers.Dense(num_classes)(layers.Dropout(0.2)(x))
    model = keras.Model(pixels, outputs)
    targets = keras.utils.to_categorical(labels, num_classes)
    steps = int(np.ceil(len(labels) / 32))

    def fit(rate: float, epochs: int) -> None:
        schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4), loss)
        model.fit(train, targets, batch_size=32, epochs=epochs, verbose=0)

    network.trainable = False
    fit(1e-3, 15)
    network.trainable = True
    first = base.cuts[DEPTH].index
    for place, layer in enumerate(network.operations):
        if isinstance(layer, keras.Layer):
            layer.trainable = place > first and not isinstance(layer, layers.BatchNormalization)
    assert any(weight.path for weight in network.trainable_weights), "nothing is unfrozen"
    fit(3e-4, 15)
    logits = model.predict(test, batch_size=32, verbose=0)
    return softmax(logits.astype(np.float64), axis=1), time.process_time() - started


def make_table(lines: Lines) -> str:
    """Means over draws of each way, and their ratio to the old one with its 95 % interval over all."""
    by_way: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        by_way[line["way"]][line["base"], line["set"], line["draw"]] = line
    settings = list(dict.fromkeys((line["base"], line["set"]) for line in lines))
    rows = [
        [
            f"{base}, {name}, {sum(place[:2] == (base, name) for place in by_way[OLD])} draws",
            *(_mean(by_way[way], base, name) for way in WAYS),
        ]
        for base, name in settings
    ]
    gains = [["all: log loss, times that of one fit", *(_ratio(by_way, way, "log_loss") for way in WAYS)]]
    gains += [["all: errors, times those of one fit", *(_ratio(by_way, way, "error") for way in WAYS)]]
    seconds = [["all: processor seconds of fitting", *(_seconds(by_way[way]) for way in WAYS)]]
    return draw_table(["accuracy / log loss", *WAYS], [*rows, *gains, *seconds])


def regret(lines: Lines) -> list[dict[str, Any]]:
    """For each set and draw: the base that the head on every cut would choose out of fold, and what is lost by that.

    points: accuracy of the best base's product minus that of the chosen one's, both on test.
    """
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["way"] == "product":
            found[line["set"], line["draw"]].append(line)
    rows = []
    for (name, draw), candidates in found.items():
        chosen = min(candidates, key=lambda line: line["out_of_fold"])
        best = max(candidates, key=lambda line: line["accuracy"])
        rows.append(
            {
                "set": name,
                "draw": draw,
                "candidates": len(candidates),
                "chosen": chosen["base"],
                "best": best["base"],
                "points": 100 * (best["accuracy"] - chosen["accuracy"]),
            }
        )
    return rows


def _mean(found: dict[tuple[Any, ...], dict[str, Any]], base: str, name: str) -> str:
    own = [line for place, line in found.items() if place[:2] == (base, name)]
    if not own:
        return "–"
    return f"{np.mean([line['accuracy'] for line in own]):.3f} / {np.mean([line['log_loss'] for line in own]):.3f}"


def _ratio(by_way: Any, way: str, kind: str) -> str:
    """The geometric mean over settings of the ratio of their means over draws, with a t interval over settings."""
    groups: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for place, line in by_way[way].items():
        groups[place[:2]].append((_value(line, kind), _value(by_way[OLD][place], kind)))
    # An error of 0 has no logarithm: a hundredth of a point is added to both.
    logs = [
        np.log((np.mean([a for a, _ in own]) + 1e-4) / (np.mean([b for _, b in own]) + 1e-4)) for own in groups.values()
    ]
    if len(logs) < 3:
        return f"{np.exp(np.mean(logs)):.2f}" if logs else "–"
    spread = stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp([np.mean(logs) - spread, np.mean(logs), np.mean(logs) + spread])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _value(line: dict[str, Any], kind: str) -> float:
    return float(1 - line["accuracy"] if kind == "error" else line[kind])


def _seconds(found: dict[tuple[Any, ...], dict[str, Any]]) -> str:
    values: Sequence[float] = [line["seconds"] for line in found.values()]
    return f"{np.mean(values):.0f}" if values else "–"


if __name__ == "__main__":
    main()
