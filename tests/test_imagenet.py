"""`weights: imagenet`: Keras's own way of having them, run against a server on the loopback."""

import hashlib
import os
import urllib.request
from http.server import BaseHTTPRequestHandler

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from keras.src.utils import file_utils
from servers import serving

from frostline import params
from frostline.bases import files
from frostline.bases.base import load_base
from frostline.bases.cuts import scale_pixels
from frostline.bases.files import fetch_weights, find_torn
from frostline.errors import Refused
from frostline.files import load_json, require_complete

SMALL = {"alpha": 0.35}
FAMILIES = [("MobileNetV3Small", 32, {"alpha": 0.75}), ("ResNet50", 32, {})]
if os.environ.get("FROSTLINE_ALL_FAMILIES"):
    FAMILIES += [
        ("EfficientNetB0", 32, {}),
        ("MobileNet", 128, {"alpha": 0.25}),
        ("InceptionV3", 75, {}),
        ("DenseNet121", 32, {}),
        ("EfficientNetV2B0", 32, {}),
        ("ConvNeXtTiny", 32, {}),
    ]
# Keras says so where it has no weights for just this size, and takes those for 224 px.
pytestmark = pytest.mark.filterwarnings("ignore:`input_shape` is undefined or non-square")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if server.behaviour == "stall":
            server.stop.wait(10)
            return
        if server.behaviour in ("404", "503"):
            self.send_error(int(server.behaviour))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.data)))
        self.end_headers()
        half = server.behaviour == "half"
        self.wfile.write(server.data[: len(server.data) // 2] if half else server.data)


@pytest.fixture
def server():
    with serving(Handler) as running:
        yield running


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Keras cache, and urllib as in a fresh process: it reads the proxies once."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path / "keras" / "models"


@pytest.fixture
def hosted(server, cache, monkeypatch):
    """Keras's addresses lead to the server; what it checks by a hash, it checks by the served file's, if not told another."""
    real, told = file_utils.get_file, {"host": server.url, "hash": None}

    def get_file(fname, origin, **options):
        host, _, path = origin.removeprefix("https://").partition("/")
        assert host == "storage.googleapis.com" and path
        if options.get("file_hash"):
            options["file_hash"] = told["hash"] or hashlib.md5(server.data, usedforsecurity=False).hexdigest()
        return real(fname, f"{told['host']}/{path}", **options)

    monkeypatch.setattr(file_utils, "get_file", get_file)
    return told


def make_file(network, tmp_path):
    """The bytes of a file as Keras released them: the legacy layout."""
    rng = np.random.default_rng(0)
    for layer in network.layers:
        for weight in layer.weights:
            if weight.name in ("moving_variance", "gamma"):
                weight.assign(rng.uniform(0.7, 1.4, weight.shape))
            elif isinstance(layer, keras.layers.Normalization) and weight.name in ("mean", "variance"):
                # EfficientNet's files hold the deviation in the place of the variance.
                weight.assign([0.485, 0.456, 0.406] if weight.name == "mean" else [0.229, 0.224, 0.225])
    with h5py.File(tmp_path / "released.h5", "w") as file:
        save_weights_to_hdf5_group(file, network)
    return (tmp_path / "released.h5").read_bytes()


def section(name="MobileNetV2", size=32, options=None):
    return params.Base(name=name, weights="imagenet", image_size=size, options=options or {})


@pytest.fixture
def small(server, tmp_path):
    """What the server has: MobileNetV2 0.35, whose file Keras checks by no hash."""
    network = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3), **SMALL)
    server.data = make_file(network, tmp_path)
    return section(size=96, options=SMALL)


@pytest.mark.parametrize(("name", "size", "options"), FAMILIES)
def test_a_family_is_downloaded_kept_and_the_network_that_keras_would_use(
    name, size, options, server, cache, hosted, tmp_path
):
    keras.backend.clear_session()
    build = getattr(keras.applications, name)
    server.data = make_file(build(include_top=False, weights=None, input_shape=(size, size, 3), **options), tmp_path)
    base = section(name, size, options)
    fetch_weights(base, tmp_path / "base", seed=0)
    require_complete(tmp_path / "base")
    card = load_json(tmp_path / "base" / "card.json")
    assert (card["weights"], card["source"]) == ("imagenet", "keras.applications, ImageNet")
    assert len(server.asked) == 1 and len(list(cache.iterdir())) == 1
    ours = load_base(base, tmp_path / "base")
    stock = build(include_top=False, weights="imagenet", input_shape=(size, size, 3), **options)
    assert len(server.asked) == 1  # from the cache
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    given = keras.Input(pixels.shape[1:], dtype="uint8")
    scaled = keras.Model(given, scale_pixels(given, ours.scaling))(pixels)
    found, wanted = (keras.ops.convert_to_numpy(model(scaled, training=False)) for model in (ours.model, stock))
    assert np.ptp(wanted) > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("404", "404 -- Not Found"),
        ("503", "503 -- Service Unavailable"),
        ("half", "retrieval incomplete"),
        ("stall", "timed out"),
    ],
)
def test_what_does_not_arrive_is_refused_and_asked_for_again(
    server, cache, hosted, small, tmp_path, monkeypatch, behaviour, words
):
    monkeypatch.setattr(files, "STALLED_SECONDS", 0.5)
    server.behaviour = behaviour
    with pytest.raises(Refused, match=f"ImageNet weights of MobileNetV2 could not be had: .*{words}"):
        fetch_weights(small, tmp_path / "base", seed=0)
    assert not (tmp_path / "base" / "complete.json").exists() and not list(cache.iterdir())
    server.behaviour = ""
    fetch_weights(small, tmp_path / "base", seed=0)
    assert len(server.asked) == 2 and require_complete(tmp_path / "base")


def test_a_server_that_is_away_is_refused(server, cache, hosted, small, tmp_path):
    hosted["host"] = "http://127.0.0.1:9"
    with pytest.raises(Refused, match=r"URL fetch failure on http://127\.0\.0\.1:9/.*Connection refused"):
        fetch_weights(small, tmp_path / "base", seed=0)


def test_another_file_than_keras_knows_is_refused(server, cache, hosted, tmp_path):
    network = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(32, 32, 3))
    server.data, hosted["hash"] = make_file(network, tmp_path), "0" * 32
    with pytest.raises(Refused, match="hash does not match the provided value of 00000"):
        fetch_weights(section("MobileNetV3Small"), tmp_path / "base", seed=0)
    hosted["hash"] = None
    fetch_weights(section("MobileNetV3Small"), tmp_path / "base", seed=0)
    # Here the file in the cache was the right one after all, and is not asked for twice.
    assert len(server.asked) == 1


def test_half_a_file_of_a_killed_download_is_replaced_where_keras_knows_the_hash(server, cache, hosted, tmp_path):
    network = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(32, 32, 3))
    server.data = make_file(network, tmp_path)
    fetch_weights(section("MobileNetV3Small"), tmp_path / "one", seed=0)
    (kept,) = cache.iterdir()
    kept.write_bytes(server.data[:10_000])
    fetch_weights(section("MobileNetV3Small"), tmp_path / "other", seed=0)
    assert len(server.asked) == 2 and kept.read_bytes() == server.data


def test_half_a_file_of_a_killed_download_is_named_where_keras_knows_no_hash(server, cache, hosted, small, tmp_path):
    fetch_weights(small, tmp_path / "base", seed=0)
    (kept,) = cache.iterdir()
    assert find_torn(cache) == []
    kept.write_bytes(server.data[:10_000])
    with pytest.raises(Refused, match=f"Half a file is in Keras's cache, remove it and run again: {kept}"):
        fetch_weights(small, tmp_path / "other", seed=0)
    assert len(server.asked) == 1
    kept.unlink()
    fetch_weights(small, tmp_path / "other", seed=0)


def test_a_proxy_is_used_and_left_out_as_the_environment_says(server, cache, hosted, small, tmp_path, monkeypatch):
    hosted["host"] = "http://weights.invalid"
    monkeypatch.setenv("http_proxy", server.url)
    fetch_weights(small, tmp_path / "base", seed=0)
    assert server.asked[0].startswith("http://weights.invalid/tensorflow/keras-applications/mobilenet_v2/")
    next(cache.iterdir()).unlink()
    monkeypatch.setenv("no_proxy", "weights.invalid")
    with pytest.raises(Refused, match=r"URL fetch failure on http://weights\.invalid"):
        fetch_weights(small, tmp_path / "other", seed=0)
    assert len(server.asked) == 1
