"""Write a recognizer as ONNX files, which sherpa-onnx executes on phones and in browsers, or by torch.export.

Example:
    asr export runs/rnnt/checkpoints/last.ckpt --output exported --int8
    sherpa-onnx-offline --tokens=exported/tokens.txt --encoder=exported/encoder.onnx --decoder=exported/decoder.onnx
        --joiner=exported/joiner.onnx --model-type=transducer speech.wav

A transducer becomes encoder, decoder (the prediction network) and joiner, an Emformer also streaming_encoder, with its
state as inputs and outputs; a CTC recognizer becomes model. tokens.txt has their tokens. Batches and times may have any
size; normalization of features is part of the encoder.

sherpa-onnx computes the features itself, so a recognizer must have been trained with the same features. Others are
refused, and the message says which are needed. The files are executed by onnxruntime and compared with PyTorch. It
needs `pip install 'asr_lightning[export]'`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from asr_lightning.asr import main
from asr_lightning.tools.arguments import add_output

LARGEST_DIFFERENCE = 1e-4  # of log probabilities, between onnxruntime or torch.export and PyTorch
BATCHES = ((1, 120), (3, 77), (2, 200))  # utterances, frames
TOKENS = 5  # of the histories that are compared
OPSET = 17
QUANTIZED = ("MatMul", "LSTM")  # convolutions are slower in int8 on processors of today


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file that `lightning fit` has written")
    add_output(parser, "encoder, decoder and joiner, or model, and tokens.txt")
    parser.add_argument(
        "--format", choices=("onnx", "torch"), default="onnx",
        help="onnx, or torch for programs of torch.export, .pt2, which read features of any kind (default: onnx)",
    )  # fmt: skip
    parser.add_argument(
        "--int8", action="store_true", help="also write NAME.int8.onnx with weights of 8 bits, quantized dynamically"
    )


def run(options: argparse.Namespace) -> int:
    """Write the files; return the exit status."""
    from asr_lightning.errors import InputError
    from asr_lightning.files import replacing_files, write_atomically
    from asr_lightning.models.checkpoints import load_recognizer
    from asr_lightning.tools.exported_networks import make_exported

    if options.int8 and options.format == "torch":
        raise InputError("--int8: expected --format onnx, whose weights onnxruntime quantizes, got torch")
    if options.format == "onnx":
        _check_packages()
    form = make_exported(load_recognizer(options.checkpoint))
    if options.format == "onnx":
        form.check_features()
    symbols = form.symbols()
    with replacing_files(options.output) as folder:  # since an encoder fits its own decoder and tokens only
        (write_onnx if options.format == "onnx" else write_torch)(form, folder)
        if options.int8:
            _quantize(form, folder)
        write_atomically(
            folder / "tokens.txt", "".join(f"{symbol} {number}\n" for number, symbol in enumerate(symbols))
        )
    print(f"tokens.txt: {len(symbols):,} tokens")
    for note in form.notes:
        print(note)
    return 0


def write_onnx(form: Any, folder: Path) -> None:  # noqa: ANN401 - `Exported` would import torch
    """Write the networks of a form as ONNX files, and compare them with PyTorch.

    Raises:
        InputError: A network cannot be written, or computes something else than in PyTorch.
    """
    import warnings

    import onnx
    import torch

    from asr_lightning.errors import InputError, reason
    from asr_lightning.files import replacing

    for name, graph in form.graphs.items():
        path = folder / f"{name}.onnx"
        with replacing(path) as unfinished:
            try:
                with warnings.catch_warnings(), torch.no_grad():
                    # The exporter of torch.export's programs unrolls recurrent layers; this one records them as such.
                    warnings.simplefilter("ignore")
                    torch.onnx.export(
                        graph.module.eval(), tuple(graph.inputs.values()), str(unfinished),
                        input_names=list(graph.inputs), output_names=list(graph.outputs), dynamic_axes=graph.axes,
                        opset_version=OPSET, dynamo=False,
                    )  # fmt: skip
            except Exception as error:  # tracing ends with errors of many classes
                raise InputError(f"{name} cannot be written as ONNX: {reason(error)}") from error
            model = onnx.load(unfinished)
            for key, value in graph.metadata.items():
                model.metadata_props.add(key=key, value=str(value))
            for key, value in graph.defaults.items():  # an input with an initializer may be left out
                model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), key))
            onnx.checker.check_model(model)
            onnx.save(model, unfinished)
    runs = {name: onnx_run(folder / f"{name}.onnx") for name in form.graphs}
    check(form, runs, LARGEST_DIFFERENCE)
    for name in form.graphs:
        print(f"{name}.onnx: {(folder / f'{name}.onnx').stat().st_size / 1e6:.1f} MB")


def write_torch(form: Any, folder: Path) -> None:  # noqa: ANN401 - as above
    """Write the networks of a form as programs of torch.export, and compare them with PyTorch.

    Raises:
        InputError: A network cannot be written, or computes something else than in PyTorch.
    """
    import torch
    from torch import nn

    from asr_lightning.errors import InputError, reason
    from asr_lightning.files import replacing

    for name, graph in form.graphs.items():
        recurrent = [module for module in graph.module.modules() if isinstance(module, nn.RNNBase)]
        if recurrent and "encoder" in name or name == "model" and recurrent:
            raise InputError(
                f"{name}: torch.export unrolls recurrent layers ({type(recurrent[0]).__name__}) to one number of "
                "frames; expected an encoder without them, or --format onnx"
            )
        sizes = [{axis: torch.export.Dim.AUTO for axis in graph.axes.get(key, {})} for key in graph.inputs]
        try:
            with torch.no_grad():
                program = torch.export.export(
                    graph.module.eval(), tuple(graph.inputs.values()), dynamic_shapes=tuple(sizes), strict=False
                )
        except Exception as error:  # as above
            raise InputError(f"{name} cannot be written by torch.export: {reason(error)}") from error
        with replacing(folder / f"{name}.pt2") as unfinished:
            with unfinished.open("wb") as file:
                torch.export.save(program, file)
    runs = {name: torch.export.load(folder / f"{name}.pt2").module() for name in form.graphs}
    check(form, {name: _tuple(run) for name, run in runs.items()}, LARGEST_DIFFERENCE)


def check(form: Any, runs: Any, bound: float | None) -> float:  # noqa: ANN401 - as above
    """Return the largest difference of log probabilities between networks as written and in PyTorch, and print it.

    Args:
        form: Its networks are the truth.
        runs: Functions that execute the networks as written, by name.
        bound: The largest difference that is no error; None for any.

    Raises:
        InputError: The difference is above the bound, or not a number.
    """
    import torch

    from asr_lightning.errors import InputError

    references = {name: _tuple(graph.module) for name, graph in form.graphs.items()}
    generator = torch.Generator().manual_seed(2)
    largest = 0.0
    with torch.no_grad():
        for count, frames in BATCHES:
            features = torch.randn(count, frames, form.features.dimension, generator=generator)
            lengths = torch.randint(frames // 2, frames + 1, (count,), generator=generator)
            lengths[0] = frames
            tokens = torch.randint(1, len(form.order) - 1, (count, TOKENS), generator=generator)
            pairs = [
                (form.log_probs(networks, features, lengths, tokens), form.streamed(networks, features))
                for networks in (references, runs)
            ]
            for expected, output in zip(*pairs, strict=True):
                if expected is None:
                    continue
                difference = float((expected - output).abs().max()) if expected.shape == output.shape else float("nan")
                largest = difference if not difference <= largest else largest
    if bound is not None and not largest <= bound:
        raise InputError(
            f"expected log probabilities that differ from PyTorch's by at most {bound:g}, found {largest:.3g}: "
            "what was written is not this network"
        )
    print(f"largest difference of log probabilities to PyTorch: {largest:.2g}")
    return largest


def onnx_run(path: Path, threads: int = 1) -> Any:  # noqa: ANN401 - a function of tensors
    """Return a function of tensors, in the order of the inputs, that executes an ONNX file."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in [*session.get_inputs(), *session.get_overridable_initializers()]]

    def execute(*inputs: torch.Tensor) -> list[torch.Tensor]:
        values = {name: tensor.contiguous().numpy() for name, tensor in zip(names, inputs, strict=False)}
        return [torch.from_numpy(output) for output in session.run(None, values)]

    return execute


def _quantize(form: Any, folder: Path) -> None:  # noqa: ANN401 - as above
    """Write the networks with weights of 8 bits, and print how much that changes."""
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    from asr_lightning.files import replacing

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # onnxruntime advises shape inference through the root logger
    try:
        for name in form.graphs:
            with replacing(folder / f"{name}.int8.onnx") as unfinished:
                quantize_dynamic(
                    folder / f"{name}.onnx", unfinished, op_types_to_quantize=list(QUANTIZED),
                    weight_type=QuantType.QInt8,
                    # To 7 bits: processors without VNNI add two products in 16 bits, where those of 8 bits overflow.
                    reduce_range=True,
                )  # fmt: skip
    finally:
        logger.setLevel(level)
    print("int8, ", end="")
    check(form, {name: onnx_run(folder / f"{name}.int8.onnx") for name in form.graphs}, None)
    for name in form.graphs:
        print(f"{name}.int8.onnx: {(folder / f'{name}.int8.onnx').stat().st_size / 1e6:.1f} MB")


def _check_packages() -> None:
    from importlib.util import find_spec

    from asr_lightning.errors import InputError

    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"{' and '.join(missing)}: not installed; pip install 'asr_lightning[export]'")


def _tuple(run: Any) -> Any:  # noqa: ANN401 - functions of tensors
    """Return a function whose result is a tuple, also of one tensor."""

    def execute(*inputs: Any) -> Any:  # noqa: ANN401 - as above
        result = run(*inputs)
        return result if isinstance(result, (tuple, list)) else (result,)

    return execute


if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
