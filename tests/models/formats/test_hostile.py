"""Files made to harm: refused by their name, in bounded time and memory, with nothing changed."""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuninglab.errors import UserError
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.formats.reading import read_checkpoint
from tuninglab.models.parts import load_weights

MAGIC = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def storage(key="0", count=4, kind=FLOATS):
    return b"(" + text("storage") + kind + text(key) + text("cpu") + b"K" + bytes([count]) + b"tQ"


def tensor(size=b"K\x04\x85", stride=b"K\x01\x85", offset=b"K\x00", lies=None):
    return REBUILD + b"(" + (lies or storage()) + offset + size + stride + b"\x89N" + b"tR"


def zipped(path, body, data=b"\0" * 16, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("a/data/0", data)


def legacy(path, body, data=b"\0" * 16):
    before = b"".join(pickle.dumps(value, protocol=2) for value in MAGIC)
    keys = pickle.dumps(["0"] if data else [], protocol=2)
    after = keys + (struct.pack("<q", 4) + data if data else b"")
    path.write_bytes(before + b"\x80\x02" + body + b"." + after)


def one_key(name, value):
    return b"}" + text(name) + value + b"s"


BUILT = [
    b"}" + text("__defaults__") + b"K\x01\x85s",
    b"N}" + text("__module__") + text("os") + b"s\x86",
]
NOT_READ = {
    "state of a function": REBUILD + BUILT[0] + b"b",
    "slots of a function": REBUILD + BUILT[1] + b"b",
    "state of a maker of parameters": b"ctorch._utils\n_rebuild_parameter\n" + BUILT[0] + b"b",
    "a tensor as key": b"}" + tensor() + b"K\x01s",
    "a list as key": b"}](K\x01eK\x01s",
    "a deep tuple as key": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s",
    "keys of one hash": b"}\x8a\x09" + b"\0" * 7 + b"\0\x40K\x01s",
    "a module": b"(" + text("module") + REBUILD + text("a.py") + text("code") + b"tQ",
    "an endless name": b"(" + text("storage") + FLOATS + b"]" + text("cpu") + b"K\x04tQ",
    "64 steps to nowhere": b"0" * 64,
    "a name of lists": b"]]\x93",
    "a call of a list": b"])R",
    "unknown instruction": b"\x82\x01",
    "long integer": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
    "only protocols": b"\x80" * 2**20,
    "copies without end": (
        b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(60_000)) + b"uq\x01"
        b"ccollections\nOrderedDict\nq\x02" + b"h\x02h\x01\x85R" * 1000
    ),
}


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("kind", NOT_READ)
def test_what_no_checkpoint_does_is_refused_by_name(kind, write, tmp_path, monkeypatch):
    makers = torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter
    before = [(dict(vars(f)), f.__defaults__, f.__module__, f.__kwdefaults__) for f in makers]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "evil.pt", NOT_READ[kind])
    with pytest.raises(UserError, match=r"evil\.pt"):
        read_checkpoint(tmp_path / "evil.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pt"]
    after = [(dict(vars(f)), f.__defaults__, f.__module__, f.__kwdefaults__) for f in makers]
    assert after == before


BESIDE = {
    "lists 100,000 deep": b"]" * 100_000 + b"a" * 99_999,
    "tuples 100,000 deep": b")" + b"\x85" * 100_000,
    "shared lists": b"]q\x020" + b"](h\x02h\x02h\x02h\x02e" + b"q\x020](h\x02h\x02h\x02h\x02e" * 40,
    "memo far away": b"Nr\0\0\0\x10",
    "a list that holds itself": b"]q\x05h\x05a",
    "numbers": b"](" + b"K\x01" * 200_000 + b"e",
}


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_tensors_does_not_keep_them_from_being_read(kind, write, tmp_path):
    path = tmp_path / "odd.pt"
    write(path, b"}(" + text("w") + tensor() + text("more") + BESIDE[kind] + b"u")
    read = read_checkpoint(path)
    assert torch.equal(read.tensors["w"], torch.zeros(4))
    assert (
        "more" in read.extras or "more: skipped" in "".join(read.notes) or kind == "memo far away"
    )


PLACES = {
    "beyond": tensor(size=b"K\x05\x85"),
    "behind": tensor(offset=b"K\x01"),
    "before": tensor(offset=b"J\xff\xff\xff\xff"),
    "negative stride": tensor(stride=b"J\xff\xff\xff\xff\x85"),
    "no numbers": tensor(size=text("4") + b"\x85"),
    "two strides": tensor(stride=b"K\x01K\x01\x86"),
    "fraction": tensor(offset=b"G" + struct.pack(">d", 0.5)),
    "truth": tensor(size=b"\x88\x85"),
    "100 dimensions": tensor(
        size=b"(" + b"K\x01" * 100 + b"t", stride=b"(" + b"K\x01" * 100 + b"t"
    ),
    "storage too large": tensor(lies=storage(count=200)),
    "no such storage": tensor(lies=storage(key="1")),
    "stride 0": tensor(size=b"\x8a\x05\0\0\0\0\x02\x85", stride=b"K\x00\x85"),
    "huge": tensor(size=b"\x8a\x09" + b"\xff" * 8 + b"\0\x85", stride=b"K\x00\x85"),
}


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("kind", PLACES)
def test_tensors_outside_of_their_file(kind, write, tmp_path):
    write(tmp_path / "evil.pt", one_key("w", PLACES[kind]))
    with pytest.raises(UserError, match=r"evil\.pt"):
        read_checkpoint(tmp_path / "evil.pt")


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to_sparse_csr(),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: torch.complex(t, t).conj(),
        lambda t: torch.nested.nested_tensor([t], layout=torch.strided),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_named(make, bare, tmp_path):
    state = {"perceiver.latents": make(torch.ones(2, 2))}
    torch.save(state if bare else {"model_state_dict": state}, tmp_path / "sparse.pt")
    with pytest.raises(UserError, match=r"sparse\.pt: perceiver\.latents is no dense tensor"):
        read_checkpoint(tmp_path / "sparse.pt")


def test_the_state_of_an_optimizer_is_not_looked_at(tmp_path):
    sparse = torch.eye(2).to_sparse()
    torch.save({"state_dict": {"a": torch.ones(2)}, "optimizer": sparse}, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt").tensors) == ["a"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_compressed_file_is_refused_before_it_grows(compression, tmp_path):
    zipped(tmp_path / "bomb.pt", b"B" + struct.pack("<I", 2**26) + bytes(2**26), b"", compression)
    with pytest.raises(UserError, match=r"bomb\.pt was compressed"):
        read_checkpoint(tmp_path / "bomb.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_and_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", "/dev/zero"):
        with pytest.raises(UserError, match="no regular file"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "shard", ["/etc/passwd", "../a.bin", "b/a.bin", "..", "a" * 5000, "a\0b", 3, None]
)
def test_an_index_that_leads_elsewhere(shard, tmp_path):
    index = tmp_path / "d" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    torch.save({"w": torch.ones(1)}, tmp_path / "a.bin")
    with pytest.raises(UserError, match=str(index.parent)):
        read_checkpoint(index.parent)


@pytest.mark.parametrize("name", ["a" * 5000, "a\nb", "\ud800", "a\0"])
@pytest.mark.parametrize("beside", [True, False])
def test_names_that_are_none(name, beside, tmp_path):
    content = {"w": torch.ones(1), name: 3 if beside else torch.ones(1)}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_all_that_torch_saves_of_dense_tensors(zipped, tmp_path):
    """Against torch.load: views, shared storages, every format, parameters, attributes."""
    base = torch.arange(24.0)
    linear = torch.nn.Linear(2, 2)
    state = OrderedDict(
        a=base.reshape(4, 6)[1:, ::2],
        b=base[5:7],
        c=base.reshape(4, 6).T,
        d=torch.zeros(0, 3),
        e=torch.tensor(2.5),
        f=torch.ones(3).expand(2, 3),
        g=linear.weight,
        h=torch.tensor([True, False, True]),
        **{str(t): torch.arange(3).to(t) for t in (torch.float16, torch.bfloat16, torch.int8)},
        **{str(t): torch.arange(5).to(t) for t in (torch.float64, torch.int64, torch.complex64)},
    )
    if zipped:
        state["float8"] = torch.ones(3).to(torch.float8_e4m3fn)
        state["uint16"] = torch.ones(3, dtype=torch.uint16)
    state["i"] = torch.ones(2)
    state["i"].note = "an attribute"
    state._metadata = {"": {"version": 1}}
    path = tmp_path / "a.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    expected, read = torch.load(path, weights_only=True), read_checkpoint(path)
    assert list(read.tensors) == list(expected)
    for name, tensor in expected.items():
        found = read.tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert found.stride() == tensor.stride(), name
        same = (t.to(torch.float64) if t.element_size() == 1 else t for t in (found, tensor))
        assert torch.equal(*same), name
    assert read.extras["_metadata"] == {"": {"version": 1}}
    storages = {name: read.tensors[name].untyped_storage().data_ptr() for name in "abc"}
    assert len(set(storages.values())) == 1
    # The file is not changed by what becomes of its tensors.
    before = path.read_bytes()
    read.tensors["a"].zero_()
    assert path.read_bytes() == before


def mutated(content, seed):
    chance, changed = random.Random(seed), bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        kind = chance.randrange(4)
        if kind == 0:
            changed[at] = chance.randrange(256)
        elif kind == 1:
            del changed[at : at + chance.randint(1, 8)]
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.randint(1, 8))
        else:
            other = chance.randrange(len(changed))
            changed[at:at] = changed[other : other + chance.randint(1, 30)]
        if not changed:
            break
    return bytes(changed)


def saved(is_zip):
    stream = io.BytesIO()
    state = OrderedDict(a=torch.ones(2, 2), b=torch.ones(3, dtype=torch.bfloat16))
    content = {"epoch": 1, "args": {"x": [1, (2.5, None)]}, "model_state_dict": state}
    torch.save(content, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


@pytest.mark.parametrize("is_zip", [True, False])
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_scrambled_files_are_read_or_refused_by_name(is_zip, tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / f"scrambled-{is_zip}.pt"
    path.write_bytes(mutated(saved(is_zip), seed))
    try:
        read = read_checkpoint(path)
    except UserError as error:
        assert path.name in str(error)
    else:
        assert all(tensor.float().sum() is not None for tensor in read.tensors.values())


# Not ru_maxrss: what the process that started this one had counts there, too.
PEAK = """
import re, sys
from tuninglab.cli import main
code = main(["convert", "--inspect", "--checkpoint", sys.argv[1]])
print(code, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak so")
@pytest.mark.parametrize("op", [b"]", b"}", b"\x8f", b"N\x85", b"ccollections\nOrderedDict\n)R"])
def test_the_largest_pickle_takes_bounded_memory(op, tmp_path):
    zipped(tmp_path / "bomb.pt", op * (2**26 // len(op) - 10))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "bomb.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    code, mebibytes = map(int, done.stdout.split()[-2:])
    assert code == 2 and "bomb.pt" in done.stderr and "Traceback" not in done.stderr
    assert mebibytes < 1500


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_model_directory_with_an_evil_pickle(tiny_flamingo, tmp_path):
    model = tiny_flamingo()
    folder, ran = tmp_path / "model", tmp_path / "ran"
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()

    def load():
        return load_weights(FlamingoForConditionalGeneration, "model", str(folder), True, None)

    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    theirs = load().state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    torch.save({**model.state_dict(), "evil": Touch(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle that asks for posix"):
        load()
    assert not ran.exists()
