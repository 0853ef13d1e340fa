"""Weights that processes share."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from asr_lightning.callbacks.gradients import gradient_norm
from asr_lightning.callbacks.initialization import Initialization
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.fsdp import gather_weights, release_weights, share_weights
from tests.support import SUPPORT, environment, sentences
from tests.support.tones import batch_of, conformer, make, make_trainer


def start(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Two processes, with uneven batches, one of them empty."""
    folder.mkdir()
    arguments = json.dumps({"folder": str(folder), "ranks": 2, "encoder": conformer(20), **options})
    script = [sys.executable, str(SUPPORT / "shared_run.py"), arguments]
    return subprocess.Popen(script, env=environment(), cwd=folder, stderr=subprocess.PIPE, text=True)


def test_processes_that_share_weights_train_and_validate_as_those_that_do_not(tmp_path: Path) -> None:
    for run in [start(tmp_path / strategy, strategy=strategy) for strategy in ("ddp", "fsdp")]:
        _, errors = run.communicate(timeout=280)
        assert run.returncode == 0, errors[-3000:]
    results = {
        strategy: [torch.load(tmp_path / strategy / f"2-{rank}.pt", weights_only=True) for rank in range(2)]
        for strategy in ("ddp", "fsdp")
    }
    expected = results["ddp"][0]
    for result in results["fsdp"]:
        assert result["weights"].keys() == expected["weights"].keys()
        for name, value in expected["weights"].items():
            torch.testing.assert_close(result["start"][name], expected["start"][name], rtol=0, atol=0)
            torch.testing.assert_close(result["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    moved = [(value - expected["start"][name]).abs().max() for name, value in expected["weights"].items()]
    assert max(moved) > 1e-2
    for rank in range(2):
        logged, ddp_logged = results["fsdp"][rank]["logged"], results["ddp"][rank]["logged"]
        assert {"val/wer", "grad_norm/joint", "update_norm/encoder", "distance/total"} < logged.keys()
        del (
            ddp_logged["val/real_time_factor"],
            ddp_logged["clean/real_time_factor"],
            ddp_logged["other/real_time_factor"],
        )
        assert {name: logged[name] for name in ddp_logged} == pytest.approx(ddp_logged, rel=1e-3)
    loaded = load_recognizer(tmp_path / "fsdp" / "last.ckpt").state_dict()
    for name, value in results["fsdp"][0]["weights"].items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)


def test_weights_are_whole_in_an_evaluation_and_shared_again_behind_it(mesh: DeviceMesh) -> None:
    shared, plain = make(encoder=conformer(20)), make(encoder=conformer(20))
    share_weights(shared, shared.encoder, mesh)
    share_weights(shared, shared.encoder, mesh)  # as Lightning asks for at a second run
    assert all(isinstance(parameter, DTensor) for parameter in shared.parameters())
    with torch.inference_mode():  # first of all, as Lightning's check before training is
        gather_weights(shared)
        assert not any(isinstance(parameter, DTensor) for parameter in shared.parameters())
        assert shared.eval().transcribe(batch_of()) == plain.eval().transcribe(batch_of())
        assert not any(isinstance(parameter, DTensor) for parameter in shared.parameters())
        release_weights(shared)
    assert all(isinstance(parameter, DTensor) for parameter in shared.parameters())
    for recognizer in (shared, plain):
        recognizer.train().loss(batch_of()).mean().backward()
    torch.testing.assert_close(gradient_norm(shared), gradient_norm(plain))


def test_an_unshared_recognizer_is_left_as_it_is() -> None:
    recognizer = make()
    recognizer.configure_model()
    gather_weights(recognizer)
    release_weights(recognizer)
    assert type(recognizer).__name__ == "RNNTransducer"


def test_processes_that_would_compute_the_same_are_refused() -> None:
    init_process_group("fake", store=FakeStore(), rank=0, world_size=2)  # type: ignore[no-untyped-call]
    try:
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
        with pytest.raises(InputError, match="tensor_parallel_size of 1, got 2.*data_parallel_size 2"):
            share_weights(make(), make().encoder, mesh)
    finally:
        destroy_process_group()


def test_checkpoints_in_folders_are_refused(mesh: DeviceMesh, tmp_path: Path) -> None:
    recognizer = make()
    recognizer.trainer = make_trainer(tmp_path, strategy=ModelParallelStrategy(1, 1))
    recognizer._device_mesh = mesh  # as the strategy does
    with pytest.raises(InputError, match="save_distributed_checkpoint: true.*save_distributed_checkpoint false"):
        recognizer.configure_model()


def test_initializations_refuse_shared_weights(mesh: DeviceMesh, tmp_path: Path) -> None:
    recognizer = make()
    share_weights(recognizer, recognizer.encoder, mesh)
    with pytest.raises(InputError, match="Initialization: expected whole weights.*ddp"):
        Initialization("xavier").on_fit_start(make_trainer(tmp_path), recognizer)


def test_language_models_refuse_shared_weights(mesh: DeviceMesh) -> None:
    language_model = sentences.make()
    language_model.configure_model()
    language_model._device_mesh = mesh
    with pytest.raises(InputError, match="got a language model.*ddp"):
        language_model.configure_model()
