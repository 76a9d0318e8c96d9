"""PyTorch's old checkpoints: read as they are, strides and all, and never run."""

import collections
import io
import os
import pickle
import sys
import types

import numpy as np
import pytest

from frostline.bases.checkpoints import MAGIC, PROTOCOL, read_checkpoint
from frostline.errors import Refused


class Storage:
    """Numbers as torch keeps them: one row, of a type that it knows by name."""

    def __init__(self, key, numbers):
        self.key, self.numbers = key, np.asarray(numbers)


class Tensor:
    """A view of a storage, pickled as torch does."""

    def __init__(self, storage, offset, shape, strides):
        self.given = (storage, offset, shape, strides)

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.given, False, collections.OrderedDict())


@pytest.fixture
def write(monkeypatch):
    """Writes a checkpoint as torch did before 1.6; there is no torch here, so that its names are borrowed."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise AssertionError("called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in ("FloatStorage", "LongStorage", "BFloat16Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    kinds = {"float32": torch.FloatStorage, "int64": torch.LongStorage, "float16": torch.BFloat16Storage}
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Pickler(pickle.Pickler):
        def persistent_id(self, given):
            if isinstance(given, Storage):
                return ("storage", kinds[str(given.numbers.dtype)], given.key, "cpu", given.numbers.size, None)
            return None

    def written(tensors, storages, magic=MAGIC):
        file = io.BytesIO()
        for record in (magic, PROTOCOL, {"little_endian": True}, tensors, [storage.key for storage in storages]):
            Pickler(file, 2).dump(record)
        for storage in storages:
            file.write(storage.numbers.size.to_bytes(8, "little") + storage.numbers.tobytes())
        return file.getvalue()

    return written


def test_tensors_are_read_by_their_strides(write):
    row = Storage("7", np.arange(24, dtype=np.float32))
    count = Storage("8", np.array([5], dtype=np.int64))
    tensors = collections.OrderedDict(
        plain=Tensor(row, 0, (2, 3, 4), (12, 4, 1)),
        permuted=Tensor(row, 0, (4, 2, 3), (1, 12, 4)),
        part=Tensor(row, 10, (2, 2), (4, 1)),
        scalar=Tensor(count, 0, (), ()),
    )
    found = read_checkpoint(write(tensors, [row, count]), "a.pth")
    whole = np.arange(24).reshape(2, 3, 4)
    assert list(found) == ["plain", "permuted", "part", "scalar"]
    np.testing.assert_array_equal(found["plain"], whole)
    np.testing.assert_array_equal(found["permuted"], whole.transpose(2, 0, 1))
    np.testing.assert_array_equal(found["part"], [[10, 11], [14, 15]])
    assert found["scalar"] == 5 and found["plain"].dtype == np.float32


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["magic", "tensors"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(write, tmp_path, place):
    bad = Malicious(tmp_path / "made")
    tensors = collections.OrderedDict(weight=bad if place == "tensors" else None)
    data = write(tensors, [], bad if place == "magic" else MAGIC)
    with pytest.raises(Refused, match="it names posix mkdir, which no checkpoint needs"):
        read_checkpoint(data, "a.pth")
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(bad))  # the pickle itself would have done it
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "the opcode SHORT_BINUNICODE"),
        (b"(S'id'\nios\nsystem\n.", "the opcode STRING"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "sets the state of something else"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "calls something else"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.", "calls something else"),
        (b"\x80\x02ccollections\nOrderedDict\nN}\x86R.", "calls something else"),
        (b"\x80\x02K\x01", ""),
        (b"R", ""),
        (b"h\x05.", ""),
        (b"", ""),
        (b"PK\x03\x04", ""),
    ],
)
def test_what_no_checkpoint_needs_is_refused(pickled, words):
    with pytest.raises(Refused, match=rf"a\.pth cannot be read as a PyTorch checkpoint: .*{words}"):
        read_checkpoint(pickled, "a.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (2,), (1, 1)),
        (0, (9,), (0,)),
    ],
)
def test_a_view_beyond_its_storage_is_refused(write, offset, shape, strides):
    row = Storage("7", np.zeros(4, np.float32))
    with pytest.raises(Refused, match="a tensor of shape"):
        read_checkpoint(write({"a": Tensor(row, offset, shape, strides)}, [row]), "a.pth")


def test_another_type_another_format_and_a_file_cut_short_are_refused(write):
    row, half = Storage("7", np.zeros(4, np.float32)), Storage("7", np.zeros(4, np.float16))
    data = write({"a": Tensor(row, 0, (4,), (1,))}, [row])
    assert list(read_checkpoint(data, "a.pth")) == ["a"]
    for cut in range(0, len(data), 7):
        with pytest.raises(Refused):
            read_checkpoint(data[:cut], "a.pth")
    with pytest.raises(Refused, match="names torch BFloat16Storage"):
        read_checkpoint(write({"a": Tensor(half, 0, (4,), (1,))}, [half]), "a.pth")
    with pytest.raises(Refused, match="does not begin as PyTorch's old format does"):
        read_checkpoint(write({}, [], 7), "a.pth")
    with pytest.raises(Refused, match="something else than tensors"):
        read_checkpoint(write({"a": 1}, []), "a.pth")
