"""Reading files of torch.save: what is read, what is refused, and that nothing of a file is ever executed."""

from __future__ import annotations

import copyreg
import gc
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convert.torch_file import MAX_PICKLE_BYTES, open_torch_file
from service.errors import BakeError

VALUES = np.arange(12, dtype=np.float32)
FILE = "pytorch_model.bin"
MARKER = "executed"
SHELL = f"touch {MARKER}"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
KINDS = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

# --- pickles, operation by operation ---

MARK, EMPTY, STOP = b"(", b")", b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def numbers(values: tuple[int, ...]) -> bytes:
    return MARK + b"".join(map(number, values)) + b"t"


ORDERED_DICT = name("collections", "OrderedDict")


def storage(kind: str = "FloatStorage", num_values: int = 12, key: str = "0") -> bytes:
    module, _, attribute = f"torch.{kind}".rpartition(".")
    identity = text("storage") + name(module, attribute) + text(key) + text("cpu") + number(num_values)
    return MARK + identity + b"tQ"


def tensor(
    shape: tuple[int, ...] = (3, 4),
    strides: tuple[int, ...] = (4, 1),
    offset: int = 0,
    stored: bytes | None = None,
) -> bytes:
    places = number(offset) + numbers(shape) + numbers(strides)
    given = (stored or storage()) + places + b"\x89" + ORDERED_DICT + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + MARK + given + b"tR"


def state(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def write(path: Path, made: bytes, storages: dict[str, bytes] | None = None, folder: str = "archive") -> Path:
    """Write a file whose pickle makes the value: members in the order of torch.save."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02" + made + STOP)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, content in (storages or {"0": VALUES.tobytes()}).items():
            archive.writestr(f"{folder}/data/{key}", content)
        archive.writestr(f"{folder}/version", "3\n")
        archive.writestr(f"{folder}/.data/serialization_id", "0" * 40)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(BakeError, match=reason) as caught:
        open_torch_file(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 350


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a place for a file; whatever a test puts there must not have run SHELL."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / FILE
    assert not (tmp_path / MARKER).exists()


# --- what is read ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number(path: Path, kind: str) -> None:
    values = VALUES.astype(KINDS[kind])
    write(path, state(w=tensor(stored=storage(kind))), {"0": values.tobytes()})
    read = open_torch_file(path)["w"]
    assert (read.shape, read.dtype) == ((3, 4), np.dtype(KINDS[kind]))
    assert read.read().dtype == read.dtype
    assert np.array_equal(read.read(), values.reshape(3, 4))


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "float32", "bfloat16"])
def test_untyped_storages(path: Path, kind: str) -> None:
    values = VALUES.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    stored = storage("storage.UntypedStorage", values.nbytes)
    given = stored + number(1) + numbers((2,)) + numbers((3,)) + b"\x89" + ORDERED_DICT + b")R"
    made = name("torch._utils", "_rebuild_tensor_v3") + MARK + given + name("torch", kind) + b"tR"
    write(path, state(w=made), {"0": values.tobytes()})
    assert np.array_equal(open_torch_file(path)["w"].read(), values[[1, 4]])


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((12,), (1,), 0, VALUES),
        ((4, 3), (1, 4), 0, VALUES.reshape(3, 4).T),
        ((2, 2), (4, 1), 5, VALUES.reshape(3, 4)[1:, 1:3]),
        ((2, 2), (8, 3), 0, VALUES.reshape(3, 4)[::2, ::3]),
        ((), (), 11, VALUES[11]),
        ((1, 12), (2**40, 1), 0, VALUES[None]),
        ((0, 4), (4, 1), 12, np.empty((0, 4))),
    ],
    ids=["whole", "transposed", "inner", "stepped", "scalar", "stride of size 1", "empty"],
)
def test_layouts(path: Path, shape: Any, strides: Any, offset: int, expected: Any) -> None:
    write(path, state(w=tensor(shape, strides, offset)))
    read = open_torch_file(path)["w"].read()
    assert read.shape == shape
    assert read.flags.c_contiguous
    assert np.array_equal(read, expected)


def test_an_empty_storage(path: Path) -> None:
    write(path, state(w=tensor((0,), (1,), stored=storage(num_values=0))), {"0": b""})
    assert open_torch_file(path)["w"].read().shape == (0,)


def test_tensors_may_share_a_storage(path: Path) -> None:
    write(path, state(a=tensor(), b=tensor((4,), (1,), 8)))
    tensors = open_torch_file(path)
    assert np.array_equal(tensors["a"].read()[2], tensors["b"].read())


@pytest.mark.parametrize("folder", ["archive", "pytorch_model", "a b.c"])
def test_the_folder_has_any_name(path: Path, folder: str) -> None:
    write(path, state(w=tensor()), folder=folder)
    assert list(open_torch_file(path)) == ["w"]


def test_a_state_dict_may_lie_one_level_deep(path: Path) -> None:
    write(path, state(epoch=number(3), state_dict=state(w=tensor(), count=number(1))))
    assert list(open_torch_file(path)) == ["w"]


class FakeTensor:
    """A tensor as pickle sees it: a reduction to names of torch, which need not be installed."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.reduction = (function, given)

    def __reduce__(self) -> Any:
        return self.reduction


class FakeStorage:
    pass


class FakePickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        kind = sys.modules["torch"].FloatStorage
        return ("storage", kind, "0", "cuda:0", 12) if isinstance(value, FakeStorage) else None


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put modules in the place of torch's that hold names and no more."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, names in ((torch, ["FloatStorage"]), (utils, ["_rebuild_tensor_v2", "_rebuild_parameter"])):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for attribute in names:
            setattr(module, attribute, type(attribute, (), {"__module__": module.__name__}))
    return utils


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol(path: Path, fake_torch: Any, protocol: int) -> None:
    held, rebuild = FakeStorage(), fake_torch._rebuild_tensor_v2
    whole = FakeTensor(rebuild, held, 0, (3, 4), (4, 1), False, OrderedDict())
    weights: Any = OrderedDict(w=whole, t=FakeTensor(rebuild, held, 0, (4, 3), (1, 4), False, OrderedDict()))
    weights["p"] = FakeTensor(fake_torch._rebuild_parameter, whole, True, OrderedDict())
    weights |= {"n": 3, "many": 2**70, "loss": 0.5, "text": "é", "none": None, "list": [1, 2]}
    weights |= {"one": [1], "nested": {"a": (1, 2, 3, 4)}, "yes": True, 5: "five", "again": weights["w"]}
    if protocol > 2:  # protocol 2 writes bytes as a call of _codecs.encode
        weights["raw"] = b"\0"
    weights._metadata = OrderedDict({"": {"version": 1}})
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("m/data.pkl", "w") as file:
            FakePickler(file, protocol).dump(weights)
        archive.writestr("m/data/0", VALUES.tobytes())
    tensors = open_torch_file(path)
    assert list(tensors) == ["w", "t", "p", "again"]
    assert np.array_equal(tensors["p"].read(), VALUES.reshape(3, 4))
    assert np.array_equal(tensors["t"].read(), VALUES.reshape(3, 4).T)


# --- how it is read ---


def test_opening_and_reading_take_little_memory(path: Path) -> None:
    num_values = 8 << 20
    stored = storage(num_values=num_values)
    write(path, state(w=tensor((num_values,), (1,), stored=stored)), {"0": bytes(num_values * 4)})
    gc.collect()
    tracemalloc.start()
    read = open_torch_file(path)["w"].read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not read[::4096].any()
    assert peak < 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="counts the open files in /proc")
def test_no_file_stays_open_and_an_array_outlives_its_file(path: Path) -> None:
    num_open = len(os.listdir("/proc/self/fd"))
    tensors = open_torch_file(write(path, state(w=tensor())))
    assert len(os.listdir("/proc/self/fd")) == num_open
    read = tensors["w"].read()
    path.unlink()
    assert np.array_equal(read, VALUES.reshape(3, 4))
    del read
    assert len(os.listdir("/proc/self/fd")) == num_open
    with pytest.raises(BakeError, match="has changed since it was opened"):
        tensors["w"].read()


@pytest.mark.parametrize("num_bytes", [0, 1, 300])
def test_a_file_that_shrinks_is_not_read_beyond_its_end(path: Path, num_bytes: int) -> None:
    read = open_torch_file(write(path, state(w=tensor())))["w"]
    os.truncate(path, num_bytes)
    with pytest.raises(BakeError, match="has changed since it was opened"):
        read.read()


# --- what is refused: code ---

SYSTEM = name("posix", "system")
CALL = MARK + text(SHELL) + b"t"
ATTACKS = {
    "GLOBAL": (SYSTEM + CALL + b"R", r"names posix\.system, which is not a tensor"),
    "os": (name("os", "system") + CALL + b"R", r"names os\.system, which"),
    "eval": (name("builtins", "eval") + CALL + b"R", r"names builtins\.eval, which"),
    "python 2": (name("__builtin__", "eval") + CALL + b"R", r"names __builtin__\.eval, which"),
    "STACK_GLOBAL": (text("posix") + text("system") + b"\x93" + CALL + b"R", r"names posix\.system, which"),
    "STACK_GLOBAL of no text": (number(1) + ORDERED_DICT + b"\x93", "names something without a name"),
    "getattr": (
        name("builtins", "getattr") + ORDERED_DICT + text("x") + b"\x86R",
        r"names builtins\.getattr",
    ),
    "dotted name": (text("collections") + text("OrderedDict.__init__") + b"\x93", r"OrderedDict\.__init__"),
    "dotted module": (text("torch._utils._rebuild_tensor_v2") + text("__globals__") + b"\x93", "__globals__"),
    "torch itself": (name("torch", "load") + CALL + b"R", r"names torch\.load, which"),
    "module": (name("torch.nn", "Linear") + EMPTY + b"R", r"names torch\.nn\.Linear, which"),
    "unknown storage": (storage("QInt8Storage"), r"names torch\.QInt8Storage, which"),
    "INST": (MARK + text(SHELL) + b"iposix\nsystem\n", "uses INST"),
    "OBJ": (MARK + SYSTEM + text(SHELL) + b"o", r"names posix\.system"),
    "OBJ of a good name": (MARK + ORDERED_DICT + text(SHELL) + b"o", "uses OBJ"),
    "NEWOBJ": (SYSTEM + CALL + b"\x81", r"names posix\.system"),
    "NEWOBJ of a good name": (ORDERED_DICT + EMPTY + b"\x81", "uses NEWOBJ"),
    "NEWOBJ_EX": (ORDERED_DICT + EMPTY + b"}\x92", "uses NEWOBJ_EX"),
    "EXT1": (b"\x82\xf0" + CALL + b"R", "uses EXT1"),
    "EXT2": (b"\x83\xf0\x00" + CALL + b"R", "uses EXT2"),
    "EXT4": (b"\x84\xf0\x00\x00\x00" + CALL + b"R", "uses EXT4"),
    "OrderedDict with pairs": (ORDERED_DICT + b"]\x85R", "calls collections.OrderedDict"),
    "OrderedDict called twice": (ORDERED_DICT + b")R)R", "calls dict"),
    "text called": (text("posix.system") + CALL + b"R", "calls posix.system in a way"),
    "name of a function as text": (text("collections.OrderedDict") + b")R", "calls collections.OrderedDict"),
    "dtype called": (name("torch", "float32") + CALL + b"R", r"calls torch\.float32"),
    "tensor of text": (
        name("torch._utils", "_rebuild_tensor_v2") + CALL + b"R",
        "_rebuild_tensor_v2 in a way",
    ),
    "arguments in a list": (ORDERED_DICT + b"]R", "calls collections.OrderedDict"),
    "parameter of text": (
        name("torch._utils", "_rebuild_parameter") + text(SHELL) + b"\x88}\x87R",
        "makes a parameter of touch",
    ),
    "tensor without storage": (tensor(stored=text(SHELL)), "makes a tensor of something other"),
    "tensor of a tensor": (tensor(stored=tensor()), "makes a tensor of something other"),
    "state of a name": (ORDERED_DICT + b"}b", "fills collections.OrderedDict like a dict"),
    "state of a tensor": (tensor() + b"}b", "fills Rebuilt like a dict"),
    "items of a name": (ORDERED_DICT + text("a") + text("b") + b"s", "fills collections.OrderedDict"),
    "items of a list": (b"]" + text("a") + text("b") + b"s", "fills list like a dict"),
    "values of a tensor": (tensor() + text("a") + b"a", "fills Rebuilt like a list"),
    "other persistent id": (text("module") + SYSTEM + b"\x86Q", r"names posix\.system"),
    "persistent id of a module": (text("module") + text("a") + b"\x86Q", "refers to module, which is not"),
    "persistent id in a list": (b"](" + text("storage") + b"eQ", "refers to storage, which is not"),
    "persistent id of no kind": (
        MARK + text("storage") + ORDERED_DICT + text("0") + text("cpu") + number(1) + b"tQ",
        "refers to storage, which is not",
    ),
    "persistent id in text": (b"Pstorage\n", "uses PERSID"),
    "buffer": (b"\x97", "uses NEXT_BUFFER"),
    "set": (b"\x8f", "uses EMPTY_SET"),
    "key that is a tuple": (b"})" + text("a") + b"s", "keys are not text or integers"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_refused_by_name_and_not_executed(path: Path, attack: str) -> None:
    made, reason = ATTACKS[attack]
    refused(write(path, made), reason)
    refused(write(path, state(w=tensor(), hidden=made)), reason)


def test_registered_extensions_do_not_escape(path: Path) -> None:
    copyreg.add_extension("os", "system", 0xF0)
    try:
        refused(write(path, b"\x82\xf0" + CALL + b"R"), "uses EXT1")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_the_attacks_would_work_on_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02" + ATTACKS["os"][0] + STOP)
    assert (tmp_path / MARKER).exists()


def test_the_state_of_an_ordered_dict_is_dropped(path: Path) -> None:
    harmful = (
        ORDERED_DICT + b")R" + MARK + text("w") + tensor() + b"u" + state(items=number(1), keys=number(2))
    )
    assert list(open_torch_file(write(path, harmful + b"b"))) == ["w"]


# --- what is refused: tensors ---

BAD_TENSORS = {
    "shape beyond": (tensor((3, 5), (4, 1)), "goes beyond its storage"),
    "stride beyond": (tensor((3, 4), (5, 1)), "goes beyond its storage"),
    "offset beyond": (tensor(offset=1), "goes beyond its storage"),
    "empty beyond": (tensor((0,), (1,), 13), "goes beyond its storage"),
    "expanded": (tensor((2**30, 12), (0, 1)), "repeats it as expand"),
    "huge": (tensor((2**40, 2**40), (0, 0)), "is too large"),
    "huge and empty": (tensor((0, 2**40, 2**40), (0, 0, 0)), "is too large"),
    "huge size": (tensor((2**63,), (1,)), "negative, too large"),
    "huge stride": (tensor((1, 1), (2**70, 1)), "negative, too large"),
    "negative offset": (tensor(offset=-1), "negative"),
    "negative size": (tensor((-3, -4)), "negative"),
    "negative stride": (tensor((3, 4), (4, -1), 3), "negative"),
    "fewer strides": (tensor((3, 4), (4,)), "2 sizes and 1 strides"),
    "many dimensions": (tensor((1,) * 33, (1,) * 33), "33 sizes"),
    "missing": (tensor(stored=storage(key="7")), "needs data/7, which is not in the file"),
    "elsewhere": (tensor(stored=storage(key="../data.pkl")), r"needs data/\.\./data\.pkl, which is not"),
    "more claimed": (
        tensor(stored=storage(num_values=13)),
        "storage of 52 bytes, of which the file holds 48",
    ),
    "fewer claimed": (tensor(stored=storage(num_values=11)), "storage of 44 bytes, of which"),
    "negative storage": (tensor(stored=storage(num_values=-12)), "storage of -48 bytes"),
    "huge storage": (tensor(stored=storage(num_values=2**70)), "of which the file holds 48"),
    "other kind": (tensor(stored=storage("DoubleStorage")), "storage of 96 bytes, of which"),
    "text for a size": (tensor().replace(number(3), text("3")), "no integer"),
    "true for a size": (tensor().replace(number(3), b"\x88"), "no integer"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_bad_tensor_is_named(path: Path, case: str) -> None:
    made, reason = BAD_TENSORS[case]
    refused(write(path, state(good=tensor(), w=made)), f"tensor 'w' .*{reason}")


def test_names_are_shown_short_and_printable(path: Path) -> None:
    refused(write(path, state(**{"é\x1b\n" * 1000: tensor(offset=1)})), r"tensor '\\xe9\\x1b\\n")
    refused(write(path, text("a\x1b" * 1000) + text("b") + b"\x93"), r"names a\\x1b")


def test_lazily_negated_tensors_are_refused(path: Path) -> None:
    negated = tensor()[: -len(b"tR")] + state(neg=b"\x88") + b"tR"
    refused(write(path, state(w=negated)), "lazily conjugated or negated")


@pytest.mark.parametrize("made", [b"N", b"]", tensor(), b"}", state(model=state(w=tensor())), state(n=b"N")])
def test_a_file_without_named_tensors_is_refused(path: Path, made: bytes) -> None:
    refused(write(path, made), "holds no named tensors")


# --- what is refused: files ---


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (b"", "is damaged: pop from empty list"),
        (b"\xff", "pickle is damaged or cut short"),
        (b"X\xff\xff\xff\xffab", "is damaged"),
        (b"\x8d" + b"\xff" * 8, "is damaged"),
        (b"j\x01\x00\x00\x00", "is damaged"),
        (b"t", "is damaged"),
        (b"\x85\x85", "is damaged"),
        (b"}" + text("a") + b"(u", "fills a like a dict"),
        (b"}(" + text("a") + b"u", "is damaged"),
        (b"N" + b"\x85" * 300_000, "no named tensors"),
        (b"]" * 300_000 + b"a" * 299_999, "no named tensors"),
        (b"}N" + b"\x85" * 300_000 + b"Ns", "keys are not text"),
        (b"(" * 300_000, "is damaged"),
        (b"Nr\xff\xff\xff\xff", "no named tensors"),
        (b"\x8b\xff\xff\xff\x7f", "uses LONG4"),
        (b"N" * MAX_PICKLE_BYTES, f"above the {MAX_PICKLE_BYTES}"),
    ],
)
def test_a_hostile_pickle_is_refused(path: Path, made: bytes, reason: str) -> None:
    refused(write(path, made), reason)


def test_a_pickle_without_its_end(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}")
    refused(path, "pickle is damaged or cut short")


def test_a_file_cut_short_anywhere_is_refused(path: Path) -> None:
    whole = write(path, state(w=tensor(), b=tensor((4,), (1,)))).read_bytes()
    for num_bytes in range(0, len(whole), 7):
        path.write_bytes(whole[:num_bytes])
        refused(path, "refused|damaged")


def test_a_file_with_a_byte_changed_is_read_or_refused(path: Path) -> None:
    whole = write(path, state(w=tensor())).read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read = [tensor.read().sum() for tensor in open_torch_file(path).values()]
        except BakeError:
            continue
        assert len(read) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"", "not a file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a file of torch.save"),
        (LEGACY, "before torch 1.6; save it again as safetensors"),
        (b"PK\x03\x04" + b"\0" * 100, "is damaged"),
    ],
)
def test_other_files_are_refused(path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        path.write_bytes(content)
    refused(path, reason)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a/version": b"3"}, r"0 members FOLDER/data\.pkl"),
        ({"data.pkl": b"N."}, r"0 members FOLDER/data\.pkl"),
        ({"a/data.pkl": b"N.", "b/data.pkl": b"N."}, r"2 members FOLDER/data\.pkl"),
        ({"a/data.pkl": b"N.", "a/byteorder": b"big"}, "not little-endian; save it again"),
    ],
)
def test_other_zip_files_are_refused(path: Path, members: dict[str, bytes], reason: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    refused(path, reason)


@pytest.mark.parametrize("compressed", ["data.pkl", "data/0"])
def test_compressed_members_are_refused(path: Path, compressed: str) -> None:
    contents = {"data.pkl": b"\x80\x02" + state(w=tensor()) + STOP, "data/0": VALUES.tobytes()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in contents.items():
            kind = zipfile.ZIP_DEFLATED if member == compressed else zipfile.ZIP_STORED
            archive.writestr(f"archive/{member}", content, kind)
    refused(path, f"{compressed}, which is compressed")


@pytest.mark.parametrize("offset", [5, 2**31, 2**62, 2**64 - 1])
def test_a_member_that_lies_elsewhere_is_refused(path: Path, offset: int) -> None:
    write(path, state(w=tensor()))
    content = path.read_bytes()
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)  # of byteorder
    extra = struct.pack("<2HQ", 1, 8, offset)  # where a large file keeps the offsets of its members
    lengths = struct.unpack_from("<H", content, entry + 28)[0]
    header = content[entry : entry + 30] + struct.pack("<H", len(extra)) + content[entry + 32 : entry + 42]
    listed = header + b"\xff" * 4 + content[entry + 46 : entry + 46 + lengths] + extra
    end = content.rindex(b"PK\x05\x06")
    size = struct.unpack_from("<I", content, end + 12)[0] + len(extra)
    ending = content[end : end + 12] + struct.pack("<I", size) + content[end + 16 :]
    path.write_bytes(content[:entry] + listed + content[entry + 46 + lengths : end] + ending)
    refused(path, "byteorder, which is not where|damaged|cannot be read")
