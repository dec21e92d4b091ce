"""What the dispatch hands to C, and what it refuses."""

import re

import pytest
import torch

from tuninglab.int8 import cross_entropy, rows
from tuninglab.kernels import compiled, dispatch, few_rows
from tuninglab.kernels.dispatch import Kernel, run
from tuninglab.savers import attention, glu, norm

MODULES = (rows, cross_entropy, norm, glu, attention, few_rows)
KERNELS = {k.name: k for module in MODULES for k in vars(module).values() if isinstance(k, Kernel)}


def prototypes():
    """Name -> types of the arguments, as the C sources have them."""
    found = {}
    for path in compiled.SOURCES.iterdir():
        for name, plain, listed in re.findall(
            r"^void (?:NAMED\((\w+)\)|(\w+)_f32)\(([^)]*)\)", path.read_text("utf-8"), re.M
        ):
            types = [re.sub(r"\bconst |\w+$| ", "", text.strip()) for text in listed.split(",")]
            found[name or plain] = types
    return found


def test_every_signature_is_that_of_its_c_function():
    wanted = prototypes()
    # It takes structures of its own; tests/models/test_decoding.py compares with transformers.
    del wanted["decode"]
    assert KERNELS.keys() == wanted.keys() and len(wanted) == 12
    pointers = {"T": "T*", "f32": "float*", "i8": "int8_t*", "i32": "int32_t*"}
    pointers |= {"i64": "int64_t*", "bool": "uint8_t*"}
    for name, kernel in KERNELS.items():
        types = []
        for _, kind, sizes, steps, *_ in (*kernel.inputs, *kernel.outputs):
            if sizes:
                types += [pointers[kind], *["long" for _ in steps]]
            elif kind != "T":
                types.append({"int": "long", "float": "float"}[kind])
        sizes = {size for argument in kernel.inputs for size in argument[2]}
        assert types + ["long"] * len(sizes) == wanted[name], name


def valid(kernel):
    """Arguments that fit: every size is another one."""
    sizes, given = {}, []
    kinds = {"f32": torch.float32, "T": torch.bfloat16, "i8": torch.int8, "i32": torch.int32}
    kinds |= {"i64": torch.int64, "bool": torch.bool}
    for _, kind, names, *_ in kernel.inputs:
        shape = [sizes.setdefault(size, 3 + len(sizes)) for size in names]
        if shape:
            given.append(torch.ones(shape, dtype=kinds[kind]))
        else:
            given.append({"int": 0, "float": 1.0, "T": torch.bfloat16}[kind])
    return given


def spoiled(tensor, strided):
    """The ways in which a tensor can fail to be what a kernel reads."""
    other = torch.int16 if tensor.dtype != torch.int16 else torch.int8
    yield tensor.to(other)
    yield tensor[None]
    yield tensor[..., :-1].contiguous()
    if not strided:
        yield torch.stack([tensor, tensor], -1)[..., 0]


@pytest.mark.parametrize("name", KERNELS)
def test_what_does_not_fit_is_refused_by_name(name):
    if compiled.library() is None:
        pytest.skip("no C compiler here")
    kernel, refused = KERNELS[name], 0
    kernel(*valid(kernel))
    for number, (argument, _, sizes, steps, optional, _) in enumerate(kernel.inputs):
        if not sizes:
            continue
        every = len(steps) == len(sizes)
        # The first argument says what the sizes are; where it is cut short, the next one disagrees.
        for value in spoiled(valid(kernel)[number], every):
            given = valid(kernel)
            given[number] = value
            with pytest.raises(ValueError, match=f"kernel {name}: \\w+ is .*expected"):
                kernel(*given)
            refused += 1
        for value in (None, [1.0]):
            given = valid(kernel)
            given[number] = value
            if value is None and optional:
                continue
            with pytest.raises(ValueError, match=f"kernel {name}: {argument} is "):
                kernel(*given)
    assert refused >= 4


def test_the_message_names_kernel_argument_and_what_was_expected():
    if compiled.library() is None:
        pytest.skip("no C compiler here")
    x, inverse, weight = torch.ones(4, 6), torch.ones(4), torch.ones(6)
    message = r"rms_norm_grad: x is torch.bfloat16 \(4, 6\).*expected torch.float32 \(M=4, N=6\)"
    with pytest.raises(ValueError, match=message):
        KERNELS["rms_norm_grad"](x, x.bfloat16(), inverse, weight)
    with pytest.raises(ValueError, match=r"weight is torch.float32 \(5,\).*expected.*N=6"):
        KERNELS["rms_norm"](x, torch.ones(5), 1e-6)


def test_what_c_cannot_take_goes_to_torch(kernels):
    seen = []

    def in_torch(x, column):
        seen.append(x.dtype)
        return "torch"

    quantise = KERNELS["quantise_rows"]
    for dtype in (torch.float16, torch.float64):
        assert run(quantise, in_torch, torch.ones(2, 3, dtype=dtype), None) == "torch"
    assert run(quantise, in_torch, torch.ones(2, 3, device="meta"), None) == "torch"
    assert seen == [torch.float16, torch.float64, torch.float32]
    got = run(quantise, in_torch, torch.ones(2, 3), None)
    assert (got == "torch") == (kernels == "torch")


def test_a_gpu_without_a_c_compiler_beside_it_is_served_as_well(monkeypatch):
    class OnGpu:
        is_cuda = True

    monkeypatch.setattr(compiled, "library", lambda: None)
    monkeypatch.setattr(dispatch, "_compiled", lambda function: lambda *_: "compiled")
    monkeypatch.delenv("CC", raising=False)
    for found, wanted in ((None, "torch"), ("/usr/bin/cc", "compiled")):
        monkeypatch.setattr(compiled.shutil, "which", lambda name, found=found: found)
        assert run(KERNELS["quantise_rows"], lambda *_: "torch", OnGpu(), None) == wanted


def test_compiled_forms_are_those_of_torch(kernels):
    """What a GPU runs, as far as a CPU can tell: each torch form traced as a graph of its own."""
    torch.manual_seed(0)
    e, u, grad = (torch.randn(5, 12) for _ in range(3))
    q, scale = rows.quantise_rows(e)
    p, p_scale = rows.quantise_rows(u)

    def wanted_of(given):
        return run(glu._GRAD, glu._torch_grad, *given)

    for number in range(3):
        for given in ((number, grad, q, scale, p, p_scale), (number, grad, q, scale, None, None)):
            traced = torch.compile(glu._torch_grad, backend="aot_eager", fullgraph=True)
            for value, wanted in zip(traced(*given), wanted_of(given), strict=True):
                assert (value is None) == (wanted is None)
                if value is not None:
                    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)
