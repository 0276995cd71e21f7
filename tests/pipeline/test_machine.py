"""Machine settings come from SELFALIGN_ variables; a wrong one is named with what to do about it."""

import os
from pathlib import Path

import pytest

from manifests.errors import InputError
from pipeline.machine import Machine


def test_defaults_need_no_variable() -> None:
    machine = Machine.from_environment({"PATH": "/bin"})
    assert machine == Machine()
    assert (machine.device, machine.threads, machine.staging) == ("auto", os.cpu_count(), Path(".staging"))


def test_variables_are_read_with_their_types() -> None:
    machine = Machine.from_environment({"SELFALIGN_THREADS": "3", "SELFALIGN_STAGING": "/big/disk", "OTHER": "x"})
    assert (machine.threads, machine.staging) == (3, Path("/big/disk"))


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFALIGN_BATCH", "5")
    assert Machine.from_environment().batch == 5


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"SELFALIGN_THREAD: .*did you mean SELFALIGN_THREADS\?.*selfalign doctor"):
        Machine.from_environment({"SELFALIGN_THREAD": "2"})


def test_an_unknown_variable_like_no_other_has_no_hint() -> None:
    with pytest.raises(InputError, match="SELFALIGN_QQQ: no such setting\\. Fix"):
        Machine.from_environment({"SELFALIGN_QQQ": "2"})


@pytest.mark.parametrize(("name", "value"), [("THREADS", "many"), ("THREADS", "0"), ("READERS", "1.5")])
def test_a_wrong_value_is_named_by_its_variable(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"environment variable SELFALIGN_{name}: "):
        Machine.from_environment({f"SELFALIGN_{name}": value})


def test_a_device_that_is_not_here_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        assert Machine(device="cuda", threads=torch.get_num_threads()).torch_device() == "cuda"
    else:
        with pytest.raises(InputError, match="no CUDA device is here"):
            Machine(device="cuda", threads=torch.get_num_threads()).torch_device()


@pytest.mark.parametrize(
    "cluster",
    ["none", "slurm", "slurm:3", "local:12", "tcp://10.0.0.7:8786", "tls://a.example.org:1", "node:1", "tcp://[::1]:1"],
)
def test_clusters_are_recognised_by_their_names(cluster: str) -> None:
    assert Machine.from_environment({"SELFALIGN_CLUSTER": cluster}).cluster == cluster


@pytest.mark.parametrize("cluster", ["", "local", "slurm:0", "local:0", "local:two", "SLURM", "tcp://node", "8786"])
def test_a_wrong_cluster_lists_the_choices(cluster: str) -> None:
    with pytest.raises(InputError, match="SELFALIGN_CLUSTER: .* is not none, local:N, slurm:N or an address like tcp"):
        Machine.from_environment({"SELFALIGN_CLUSTER": cluster})
