"""The Triton kernels without a GPU: the interpreter's run of them, and code for two GPUs made here.

The interpreter has to be asked for before Triton is first imported, so it has a process of its own.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tuninglab.int8 import cross_entropy, rows
from tuninglab.int8.ways import ways
from tuninglab.kernels import compiled, dispatch, gpu
from tuninglab.savers import glu, norm

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
CASES = [
    *(rows._QUANTISE, rows._SCALE_SUMS, rows._SCALE_INT8, cross_entropy._LOSS),
    *(norm._NORM, norm._GRAD, glu._GATED, glu._GRAD),
]
ROW_KERNELS = {kernel.name: kernel for kernel in CASES}
POINTERS = {"T": "*bf16", "f32": "*fp32", "i8": "*i8", "i32": "*i32", "i64": "*i64"}
NUMBERS = {"int": "i32", "float": "fp32"}


@needs_triton
@pytest.mark.slow
def test_the_interpreter_agrees_with_torch():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/kernels/test_triton_numbers.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    print(done.stdout)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def parameters(kernel):
    """Names and types that the function in Triton takes, as the signature has them."""
    found = []
    for name, kind, sizes, steps, *_ in (*kernel.inputs, *kernel.outputs):
        if sizes:
            found += [(name, POINTERS[kind]), *(("apart", "i32") for _ in steps)]
        elif kind != "T":
            found.append((name, NUMBERS[kind]))
    count = len({size for argument in kernel.inputs for size in argument[2]})
    return [*found, *[("size", "i32")] * count, ("BLOCK", "constexpr")]


@needs_triton
@pytest.mark.parametrize("name", ROW_KERNELS)
def test_every_function_takes_what_its_signature_says(name):
    from tuninglab.kernels import triton_rows

    wanted, given = parameters(ROW_KERNELS[name]), getattr(triton_rows, name).arg_names
    assert len(given) == len(wanted) and given[-1] == "BLOCK"
    tensors = {other for other, kind in wanted if kind.startswith("*")}
    assert [n for n in given if n in tensors] == [n for n, _ in wanted if n in tensors]


def made(function, types, options, architecture):
    """PTX and the resources of the code that is made for an architecture."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constant = {name: value for name, (kind, value) in types.items() if kind == "constexpr"}
    # As the launcher finds them: pointers and sizes are multiples of 16.
    aligned = [i for i, (kind, _) in enumerate(types.values()) if kind[0] in "*i"]
    source = ASTSource(
        fn=function,
        signature={name: kind for name, (kind, _) in types.items()},
        constexprs=constant,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=options)


def resources(code, folder):
    """Registers and bytes of stack of a kernel's machine code."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    (folder / "code.cubin").write_bytes(code.asm["cubin"])
    command = [str(tool), "--dump-resource-usage", str(folder / "code.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", said)
    return [int(number) for number in found]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("name", ROW_KERNELS)
def test_row_passes_become_code_that_keeps_all_in_registers(name, architecture, tmp_path):
    from tuninglab.kernels import triton_rows

    function, constant = getattr(triton_rows, name), {"activation": 2}
    options = triton_rows.blocks(4096)
    constant["BLOCK"] = options.pop("BLOCK")
    types = {}
    for argument, (_, kind) in zip(function.arg_names, parameters(ROW_KERNELS[name]), strict=True):
        known = argument in constant
        types[argument] = ("constexpr", constant[argument]) if known else (kind, None)
    registers, stack, local = resources(made(function, types, options, architecture), tmp_path)
    assert stack == local == 0 and registers < 255


def product_types(backward, lora, tokens):
    """Types of the arguments of a product x W^T (N = 4096, K = 4096), or of its way back."""
    from tuninglab.kernels.triton_products import tiles

    options = tiles(tokens, 16)
    sizes = {name: ("constexpr", options.pop(name)) for name in ("BM", "BN", "BK", "BR")}
    # One step is 1, which a launch makes a constant.
    one, other = ("constexpr", 1), ("i32", None)
    types = {"left": "*i8", "right": "*i8", "row": "*fp32", "column": "*fp32", "low": "*bf16"}
    types |= {"up": "*bf16", "factor": "fp32", "y": "*bf16"}
    types |= dict.fromkeys(("M", "N", "K", "R"), "i32")
    types = {name: (kind, None) for name, kind in types.items()}
    for name in [] if lora else ["low", "up"]:
        types[name] = ("constexpr", None)
    if backward:
        types["column"] = ("constexpr", None)
    down, across = (other, one) if backward else (one, other)
    types |= {"right_down": down, "right_across": across, "up_down": down, "up_across": across}
    return types | sizes, options


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("tokens", [64, 2048])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_int8_products_use_the_tensor_cores(architecture, backward, tokens, lora, tmp_path):
    from tuninglab.kernels.triton_products import int8_tile

    types, options = product_types(backward, lora, tokens)
    code = made(int8_tile, types, options, architecture)
    instruction = {80: r"mma\.sync\S*\.s32\.s8\.s8\.s32", 90: r"wgmma\S*\.s32\.s8\.s8"}
    assert re.search(instruction[architecture], code.asm["ptx"])
    registers, stack, local = resources(code, tmp_path)
    assert stack == local == 0 and registers < 255


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("weight", ["*i8", "*bf16"])
def test_few_rows_use_the_tensor_cores(architecture, weight, tmp_path):
    from tuninglab.kernels.triton_products import FEW, few_rows_tile

    options = dict(FEW)
    types = {"x": ("*bf16", None), "weight": (weight, None), "scale": ("*fp32", None)}
    types |= {"bias": ("*bf16", None), "y": ("*bf16", None), "M": ("i32", None)}
    types |= {"N": ("i32", None), "K": ("i32", None)}
    types |= {name: ("constexpr", options.pop(name)) for name in ("BM", "BN", "BK")}
    code = made(few_rows_tile, types, options, architecture)
    assert re.search(r"mma\S*\.bf16\.bf16", code.asm["ptx"])
    registers, stack, local = resources(code, tmp_path)
    assert stack == local == 0 and registers < 255


@pytest.fixture
def asked(monkeypatch):
    """As on a machine that has not been asked whether Triton serves it."""
    known = gpu._tried
    known.cache_clear()
    monkeypatch.delenv("TUNINGLAB_NATIVE", raising=False)
    yield monkeypatch
    known.cache_clear()


def pretend_gpu(monkeypatch, capability=(9, 0)):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiled, "c_compiler", lambda: "cc")


def test_a_gpu_is_served_by_triton_once_its_numbers_are_right(asked):
    pretend_gpu(asked)
    device = torch.device("cuda")
    asked.setattr(gpu, "_agrees", lambda device: True)
    assert gpu.passes_here(device) == ("Triton", "tried here: it gives what torch gives")
    assert gpu.serves(device) and not gpu.serves(torch.device("cpu"))
    # No limits of torch._int_mm: one row, an odd width.
    assert ways(device, 1, torch.Size((7, 9))) == ("int8", "int8")


def lost(error):
    raise error


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("TUNINGLAB_NATIVE=0", lambda m: m.setenv("TUNINGLAB_NATIVE", "0")),
        ("GPUs of NVIDIA", lambda m: m.setattr(torch.version, "hip", "6.4")),
        ("older than", lambda m: pretend_gpu(m, (7, 5))),
        ("not installed", lambda m: m.setattr(gpu.importlib.util, "find_spec", lambda name: None)),
        ("no C compiler", lambda m: m.setattr(compiled, "c_compiler", lambda: None)),
        ("other numbers", lambda m: m.setattr(gpu, "_agrees", lambda device: False)),
        (
            "Triton failed: RuntimeError: no ptxas",
            lambda m: m.setattr(gpu, "_agrees", lambda device: lost(RuntimeError("no ptxas\n..."))),
        ),
    ],
)
def test_else_torch_does_the_work_and_the_reason_is_told(asked, reason, changed):
    pretend_gpu(asked)
    changed(asked)
    value, why = gpu.passes_here(torch.device("cuda"))
    assert value.startswith("torch") and reason in why
    assert not gpu.serves(torch.device("cuda"))
    asked.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert ways(torch.device("cuda"), 16, torch.Size((64, 64))) == ("dequantise", "dequantise")


def test_a_cpu_is_never_asked_for_triton(asked, kernels):
    asked.setattr(gpu, "_tried", lambda: lost(AssertionError("asked")))
    q, scale = rows.quantise_rows(torch.randn(3, 40))
    rows.product(q, scale, q.t(), scale, torch.float32)
    assert not dispatch.in_triton(q, torch.float32)


def test_neither_import_nor_int8_on_a_cpu_brings_triton_in():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "from tuninglab.int8.linear import Int8Linear\n"
        "Int8Linear.of(torch.nn.Linear(8, 8))(torch.ones(3, 8))\n"
        "print('triton' in set(sys.modules) - before)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
