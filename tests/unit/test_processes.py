"""What each process computes, and what several cannot do."""

import pytest
import torch

from ragx.errors import ConfigError
from ragx.training.batches import cut
from ragx.training.processes import Processes


@pytest.mark.parametrize("questions", [1, 2, 5, 16])
@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_parts_hold_every_question_once(questions, most, processes):
    parts = cut(questions, most, processes)
    assert [row for part in parts for row in part] == list(range(questions))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1
    shares = [sum(sizes[number::processes]) for number in range(processes)]
    assert max(shares) - min(shares) <= max(sizes)
    assert len(parts) % processes == 0 or len(parts) == questions


def test_alone_nothing_is_exchanged():
    alone = Processes("cpu")
    assert (alone.number, alone.count, alone.is_first) == (0, 1, True)
    assert alone.share("abc") == "abc"
    table = alone.table(3, 2, [(range(1), torch.ones(1, 2)), (range(1, 3), torch.full((2, 2), 2.0))])
    assert table.tolist() == [[1, 1], [2, 2], [2, 2]]
    alone.require_same("facts", "data")
    parameter = torch.nn.Parameter(torch.ones(2))
    alone.sum_gradients([parameter])
    assert parameter.grad is None


@pytest.mark.parametrize("mode", ["FSDP", "DEEPSPEED"])
def test_sharded_models_are_refused(mode, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{mode}", "true")
    with pytest.raises(ConfigError, match=rf"{mode} mode is not supported.*torchrun"):
        Processes("cpu")


def test_one_device_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device: cuda:1: several processes take one each"):
        Processes("cuda:1")
