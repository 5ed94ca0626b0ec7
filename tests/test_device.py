"""Of several GPUs each job takes one for itself, without being told which."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from l0plane import device
from l0plane.files import UserError

# A machine with two GPUs, which are none; what the job chose is printed, then it waits.
JOB = """
import sys
from types import SimpleNamespace
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
torch.cuda.get_device_properties = lambda index: SimpleNamespace(uuid=f"{sys.argv[1]}-{index}")
torch.cuda.set_device = lambda index: print(index)
from l0plane.device import available_device
assert available_device() == available_device() == torch.device("cuda")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    """Start a job; its process, and the GPU that it took."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    jobs = []

    def job(**more):
        command = [sys.executable, "-c", JOB, tmp_path.name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment | more, **pipes)
        jobs.append(process)
        said = []
        while not said or said[-1] != "ready":
            said.append(process.stdout.readline().strip())
            assert said[-1], "the job ended"
        return process, said[:-1]

    yield job
    for process in jobs:
        process.communicate("")


def test_jobs_take_different_gpus_and_give_them_back(start):
    first, taken = start()
    assert taken == ["0"]
    assert start()[1] == ["1"]
    assert start()[1] == []  # none is free: the first, shared
    assert start(LOCAL_RANK="1")[1] == []  # one of several ranks, which knows its own
    first.communicate("")
    assert start()[1] == ["0"]


def test_the_processes_of_one_training_see_the_gpus_that_no_other_job_has(
    start, tmp_path, monkeypatch
):
    start()  # has the first
    uuid = f"{tmp_path.name}-{{}}".format
    cuda = SimpleNamespace(
        device_count=lambda: 3, get_device_properties=lambda i: SimpleNamespace(uuid=uuid(i))
    )
    monkeypatch.setattr(device.torch, "cuda", cuda)
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(device, "_claims", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device.claim_for_ranks(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == f"GPU-{uuid(1)},GPU-{uuid(2)}"
    with pytest.raises(UserError, match="each needs a GPU, and PyTorch sees 3 here"):
        device.claim_for_ranks(4)
    for lock in device._claims:
        lock.close()


@pytest.mark.parametrize(
    ("there_is_a_gpu", "asked", "expected"),
    [
        (True, {"precision": "bfloat16"}, ["medium"]),
        (True, {"precision": "float32"}, []),
        (True, {}, []),
        (False, {"precision": "bfloat16"}, []),
    ],
)
def test_precision_is_what_the_settings_say_and_full_on_a_cpu(
    monkeypatch, there_is_a_gpu, asked, expected
):
    said = []
    cuda = SimpleNamespace(is_available=lambda: there_is_a_gpu)
    matmul = SimpleNamespace(allow_bf16_reduced_precision_reduction=True)
    backends = SimpleNamespace(cuda=SimpleNamespace(matmul=matmul))
    torch_there = SimpleNamespace(
        cuda=cuda, set_float32_matmul_precision=said.append, backends=backends
    )
    monkeypatch.setattr(device, "torch", torch_there)
    device.use_precision(asked)
    assert said == expected
    assert matmul.allow_bf16_reduced_precision_reduction == (not said)  # sums are float32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("instructions", "vendor", "faster"),
    [
        ([], "AuthenticAMD", False),
        (["avx512_bf16"], "AuthenticAMD", True),
        (["avx512_bf16"], "GenuineIntel", False),
        (["avx512_bf16", "amx_bf16"], "GenuineIntel", True),
    ],
)
def test_bfloat16_is_faster_with_amx_or_on_other_processors_than_intels(
    instructions, vendor, faster, monkeypatch, tmp_path
):
    found, facts = dict.fromkeys(instructions, True), tmp_path / "cpuinfo"
    facts.write_text(f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(device, "Path", lambda _: facts)
    assert device.bfloat16_is_faster() == faster
