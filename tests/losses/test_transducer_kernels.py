"""Kernels of the transducer's loss: interpreted, compiled, run on a GPU where there is one, and refused when broken."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import asr_lightning.losses.transducer
from asr_lightning.losses.transducer import check, joint, lattice
from asr_lightning.losses.transducer.joint import joint_transducer_loss
from asr_lightning.losses.transducer.logits import torchaudio_loss

CPU = torch.device("cpu")
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
POINTERS[torch.int64] = "*i64"
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.timeout(900)  # about 20 s of computing, ten times as long on a machine that has much else to do
def test_the_interpreter_finds_the_numbers_of_plain_operations() -> None:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpreted_transducer_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(script)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("architecture", "dtype", "vocabulary", "positions"),
    [
        (80, torch.bfloat16, 500, 85),
        (90, torch.bfloat16, 500, 85),
        (80, torch.float16, 32, 5),
        (80, torch.float32, 5000, 4096),
        (90, torch.float32, 5000, 4096),
    ],
)
def test_every_kernel_compiles(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    architecture: int,
    dtype: torch.dtype,
    vocabulary: int,
    positions: int,
) -> None:
    """Ahead of time, for an A100 and an H100, from what the functions would have launched."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = []
    for kernel, arguments, constants in launches(monkeypatch, dtype, vocabulary, positions):
        options = {name: constants.pop(name) for name in ("num_warps",) if name in constants}
        types = [
            POINTERS[x.dtype] if isinstance(x, Tensor) else "fp32" if isinstance(x, float) else "i32" for x in arguments
        ]
        signature = dict(zip(kernel.arg_names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(arguments) if isinstance(x, Tensor)}
        source = triton.compiler.ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
        result = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        assert result.asm["cubin"] and f"sm_{architecture}" in result.asm["ptx"]
        assert result.metadata.shared <= 48 * 2**10  # bytes, that every GPU has
        compiled.append(kernel.__name__)
    assert compiled == [f"_{name}_kernel" for name in ("hidden", "score", "recursion", "occupancy", "error", "sum")]


def launches(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vocabulary: int, positions: int
) -> list[tuple[Any, tuple[Any, ...], dict[str, int]]]:
    """Return each kernel, its arguments and its constants, as the functions launch them on a tiny batch."""
    from asr_lightning.losses.transducer import kernels

    launched: list[tuple[Any, tuple[Any, ...], dict[str, int]]] = []

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: int) -> None:
        assert all(size > 0 for size in grid)
        launched.append((kernel, arguments, constants))

    monkeypatch.setattr(kernels, "launch", launch)
    block = slice(0, 1), slice(1, 2), slice(0, positions)
    lengths, targets = (torch.ones(1, dtype=torch.int64),) * 2, torch.zeros(1, positions, dtype=torch.int64)
    encoded, predicted = torch.zeros(1, 2, 512, dtype=dtype), torch.zeros(1, positions, 512, dtype=dtype)
    hidden = kernels.hidden_units(encoded, predicted, block)
    logits, scores = torch.zeros(1, 1, positions, vocabulary, dtype=dtype), torch.zeros(1, 2, positions)
    kernels.score(logits, targets, lengths, 0, block, (scores, scores, scores))
    kernels.occupancies(scores, scores, *lengths)
    kernels.errors(logits, targets, 0, scores, scores, scores, torch.zeros(1), block)
    kernels.sums(hidden, hidden)
    return launched


def sound_kernels(**broken: Any) -> ModuleType:
    """Functions that compute in float32, as correct kernels do; those given replace them."""

    def hidden_units(encoded: Tensor, predicted: Tensor, block: Any) -> Tensor:
        return lattice.hidden_units(encoded.float(), predicted.float(), block).to(encoded.dtype)

    def errors(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        error, of_bias = lattice.errors(logits.float(), *arguments)
        return error.to(logits.dtype), of_bias

    def sums(of_hidden: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return lattice.sums(of_hidden.float(), hidden.float())

    names = {"score": lattice.score, "occupancies": lattice.occupancies}
    names |= {"hidden_units": hidden_units, "errors": errors, "sums": sums}
    return cast(ModuleType, SimpleNamespace(**(names | broken)))


def test_sound_kernels_are_trusted() -> None:
    assert check.failure(sound_kernels(), CPU) == ""


@pytest.mark.parametrize("name", ["hidden_units", "errors", "sums", "occupancies"])
@pytest.mark.parametrize("which", [0, -1])
def test_kernels_with_wrong_numbers_are_not_trusted(name: str, which: int) -> None:
    """One number of the first or of the last tensor is wrong by a thousandth, or by more than the type's rounding."""
    sound = getattr(sound_kernels(), name)

    def wrong(*arguments: Any) -> Any:
        results = sound(*arguments)
        last = results if isinstance(results, Tensor) else results[which]
        last.view(-1)[3] = last.view(-1)[3] * 1.03 + 0.001
        return results

    reason = check.failure(sound_kernels(**{name: wrong}), CPU)
    assert reason == f"in torch.float32 they give other numbers than PyTorch: {name}"


def test_kernels_that_leave_out_a_score_are_not_trusted() -> None:
    def forgetful(logits: Tensor, *rest: Any) -> None:
        *_, block, outputs = rest
        lattice.score(logits, *rest)
        outputs[2][block][0, -1, -1] = 0.0

    reason = check.failure(sound_kernels(score=forgetful), CPU)
    assert reason == "in torch.float32 they give other numbers than PyTorch: score"


def test_kernels_that_are_wrong_in_low_precision_only_are_not_trusted() -> None:
    def rounded(logits: Tensor, *rest: Any) -> None:
        lattice.score(logits, *rest)
        if logits.dtype == torch.bfloat16:
            rest[-1][0].copy_(rest[-1][0].bfloat16())

    reason = check.failure(sound_kernels(score=rounded), CPU)
    assert reason == "in torch.bfloat16 they give other numbers than PyTorch: score"


def test_a_compiler_that_fails_is_told_in_one_line() -> None:
    def fails(*_: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\n  Please specify via CC environment variable.\n" + 1000 * "x")

    reason = check.failure(sound_kernels(hidden_units=fails), CPU)
    assert reason.startswith("RuntimeError: Failed to find C compiler. Please specify via CC environment variable. xxx")
    assert len(reason) < 320


@pytest.fixture
def fresh() -> Iterator[None]:
    check.kernels_work.cache_clear()
    yield
    check.kernels_work.cache_clear()


def test_where_triton_does_not_run_a_warning_says_so_once(fresh: None) -> None:
    """A CPU takes the part of a GPU without a driver."""
    pytest.importorskip("triton")
    with pytest.warns(RuntimeWarning, match="on cpu is computed by plain PyTorch.* without kernels: ") as caught:
        assert not check.kernels_work(CPU)
        assert not check.kernels_work(CPU)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_where_triton_is_missing_a_warning_says_so(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "asr_lightning.losses.transducer.kernels", raising=False)
    monkeypatch.delattr(asr_lightning.losses.transducer, "kernels", raising=False)
    with pytest.warns(RuntimeWarning, match="without kernels: Triton cannot be imported .*triton"):
        assert not check.kernels_work(CPU)


def test_a_cpu_and_double_precision_take_plain_operations_silently() -> None:
    assert joint.operations_for(torch.zeros(1)) is lattice


def case(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Return what the joint network reads (T 300, U 70, D 128, V 500), targets and lengths, on a GPU."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((6, 300, 128), (6, 71, 128), (500, 128), (500,))
    tensors = [torch.randn(size, generator=generator) / (3 if len(size) == 2 else 1) for size in sizes]
    targets = torch.randint(1, 500, (6, 70), generator=generator)
    frames, tokens = torch.tensor([300, 200, 0, 1, 299, 120]), torch.tensor([70, 33, 5, 2, 0, 69])
    leaves = [tensor.to("cuda", dtype).requires_grad_() for tensor in tensors]
    return leaves, targets.cuda(), frames.cuda(), tokens.cuda()


def results(tensors: list[Tensor], *arguments: Tensor) -> tuple[Tensor, ...]:
    losses = joint_transducer_loss(*tensors, *arguments, 0)  # type: ignore[call-arg, arg-type]
    return losses, *torch.autograd.grad(losses[arguments[1] > 0].sum(), tensors)


@on_a_gpu
def test_kernels_are_trusted_on_this_gpu() -> None:
    from asr_lightning.losses.transducer import kernels

    assert check.failure(kernels, torch.device("cuda", 0)) == ""
    assert joint.operations_for(torch.zeros(1, device="cuda")) is kernels
    assert joint.operations_for(torch.zeros(1, device="cuda", dtype=torch.float64)) is lattice


@on_a_gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_on_a_gpu_kernels_equal_plain_operations(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    tensors, *arguments = case(dtype)
    losses, *gradients = results(tensors, *arguments)
    monkeypatch.setattr(joint, "operations_for", lambda _: lattice)
    expected, *wanted = results([tensor.detach().double().requires_grad_() for tensor in tensors], *arguments)
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance / 10, atol=0)
    for ours, exact in zip(gradients, wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours - exact).norm() < tolerance * exact.norm()


@on_a_gpu
def test_on_a_gpu_kernels_agree_with_torchaudio() -> None:
    tensors, *arguments = case(torch.float32)
    losses, *gradients = results(tensors, *arguments)
    encoded, predicted, weight, bias = tensors
    logits = torch.tanh(encoded.unsqueeze(2) + predicted.unsqueeze(1)) @ weight.T + bias
    reference = torchaudio_loss(logits, *arguments, 0)  # type: ignore[call-arg, arg-type]
    torch.testing.assert_close(losses, reference, rtol=1e-4, atol=0)
    wanted = torch.autograd.grad(reference[arguments[1] > 0].sum(), tensors)
    for ours, other in zip(gradients, wanted, strict=True):
        assert (ours - other).norm() < 1e-3 * other.norm()


@on_a_gpu
def test_on_a_gpu_the_host_never_waits_and_results_do_not_vary() -> None:
    tensors, *arguments = case(torch.bfloat16)
    first = results(tensors, *arguments)  # compiles
    weights = torch.ones(6, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = joint_transducer_loss(*tensors, *arguments, 0)  # type: ignore[call-arg, arg-type]
        torch.autograd.grad(losses, tensors, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for result, repeated in zip(first, results(tensors, *arguments), strict=True):
        torch.testing.assert_close(result, repeated, rtol=0, atol=0)
