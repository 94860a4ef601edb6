"""A device of its own for each job, with fake devices and real processes."""

import subprocess
import sys

import pytest
import torch

from richkd.base import devices, distributed

# Takes one of three, says which, and holds it until its input ends.
JOB = """
import sys
from pathlib import Path
from richkd.base import devices
devices.folder = lambda: Path(sys.argv[1])
devices.WAIT = 0.05
print(devices.take(("a", "b", "c")), flush=True)
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


def test_no_two_jobs_share_a_device_and_a_killed_one_frees_its_own(start):
    taken = {line(job): job for job in [start() for _ in range(3)]}
    assert set(taken) == {"0", "1", "2"}
    late = start()
    assert line(late) == "all 3 devices are taken by other jobs: waiting for one"
    taken["1"].kill()
    assert line(late) == "1"


def test_many_jobs_in_turn_never_meet(start):
    """Eight jobs on three devices: each starts when another ends, and takes what that one had."""
    running = {int(line(job)): job for job in [start() for _ in range(3)]}
    assert set(running) == {0, 1, 2}
    for _ in range(5):
        device, job = running.popitem()
        waiting = start()
        assert line(waiting).startswith("all 3 devices are taken")
        job.stdin.close()  # ends
        assert int(line(waiting)) == device
        running[device] = waiting


def test_a_process_keeps_its_device(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "folder", lambda: tmp_path)
    devices.take.cache_clear()
    try:
        assert devices.take(("x", "y")) == devices.take(("x", "y")) == 0
    finally:
        while devices._held:
            devices._held.pop().release()
        devices.take.cache_clear()


class Properties:
    def __init__(self, uuid):
        self.uuid = uuid


@pytest.fixture
def three_gpus(monkeypatch):
    """As torch would say it of three, of which this process sets one as its own."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: Properties(f"gpu-{index}")
    )
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_process_on_its_own_takes_one_by_its_uuid(three_gpus, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(devices, "take", lambda names: names.index("gpu-2"))
    assert distributed.start(torch.device("cuda")) == torch.device("cuda:2")
    assert three_gpus == [torch.device("cuda:2")]


def test_those_that_torchrun_started_take_all_in_order(three_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(devices, "take", lambda names: pytest.fail("no lock is asked for"))
    assert distributed.start(torch.device("cuda")) == torch.device("cuda:1")
