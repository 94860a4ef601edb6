"""Each job reserves a device of its own: fake devices, real processes."""

import subprocess
import sys

import pytest
import torch

from richkd.base import devices, distributed

# Reserves one of three devices, prints its index, and keeps it until stdin ends.
JOB = """
import sys
from pathlib import Path
from richkd.base import devices
devices.lock_folder = lambda: Path(sys.argv[1])
devices.WAIT = 0.05
print(devices.reserve(("a", "b", "c")), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    jobs = []

    def start():
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        with job:  # closes its pipes
            job.kill()


def line(job):
    return job.stdout.readline().strip()


def test_no_two_jobs_share_a_device_and_a_killed_job_frees_its_device(start):
    running = {line(job): job for job in [start() for _ in range(3)]}
    assert set(running) == {"0", "1", "2"}
    late = start()
    assert line(late) == "all 3 devices are used by other jobs: waiting for one"
    running["1"].kill()
    assert line(late) == "1"


def test_many_jobs_in_turn_never_share_a_device(start):
    """Eight jobs on three devices: a waiting job gets the device of the job that ends."""
    running = {int(line(job)): job for job in [start() for _ in range(3)]}
    assert set(running) == {0, 1, 2}
    for _ in range(5):
        device, job = running.popitem()
        waiting = start()
        assert line(waiting).startswith("all 3 devices are used")
        job.stdin.close()  # ends
        assert int(line(waiting)) == device
        running[device] = waiting


def test_a_process_keeps_its_device(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "lock_folder", lambda: tmp_path)
    devices.reserve.cache_clear()
    try:
        assert devices.reserve(("x", "y")) == devices.reserve(("x", "y")) == 0
    finally:
        while devices._locks:
            devices._locks.pop().release()
        devices.reserve.cache_clear()


class Properties:
    def __init__(self, uuid):
        self.uuid = uuid


@pytest.fixture
def three_gpus(monkeypatch):
    """A machine with three GPUs; the list gets the device that the process chooses."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: Properties(f"gpu-{index}")
    )
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_single_process_reserves_a_gpu_by_its_uuid(three_gpus, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(devices, "reserve", lambda names: names.index("gpu-2"))
    assert distributed.join(torch.device("cuda")) == torch.device("cuda:2")
    assert three_gpus == [torch.device("cuda:2")]


def test_processes_of_torchrun_use_the_gpus_in_order(three_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(devices, "reserve", lambda names: pytest.fail("nothing is reserved"))
    assert distributed.join(torch.device("cuda")) == torch.device("cuda:1")
