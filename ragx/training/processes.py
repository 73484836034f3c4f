"""The processes of one training, as torchrun or accelerate launch started them: what each computes, what all agree on.

Every process holds the whole model and computes its share of each batch; the gradients are summed once a step. No hook
sits in the backward pass, for a pruned step runs the generator a number of times that no other process knows, and a
share may be uneven or empty. Only the first process writes and prints.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn

from ragx.artifacts import fingerprint
from ragx.errors import ConfigError, RagxError

T = TypeVar("T")

WAIT = timedelta(days=1)
"""How long a process waits for the others: the first warms the retriever up alone, and torchrun ends them all when one
of them dies."""
_OTHER_MODES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


class Processes:
    """The processes that train together: `count` of them, this one being `number`, the first being 0."""

    def __init__(self, device: str) -> None:
        """Join the others, where there are any; `device` is the configured one, "auto" resolved.

        Raises:
            ConfigError: they were started for something else than data parallelism, or share one device.
        """
        _refuse_other_modes()
        if ":" in device and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"device: {device}: several processes take one each; say device: cuda")
        state = PartialState(cpu=device == "cpu", timeout=WAIT)
        self.number: int = state.process_index
        self.count: int = state.num_processes
        self.is_first_on_host: bool = state.is_local_main_process
        self._device: torch.device = state.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.number == 0

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Those of `parts` that this process computes."""
        return parts[self.number :: self.count]

    def sum(self, value: Tensor) -> Tensor:
        """Add up the tensors of all processes in place."""
        if self.count > 1:
            with _others_may_end():
                distributed.all_reduce(value)
        return value

    def table(self, rows: int, columns: int, parts: Iterable[tuple[range, Tensor]]) -> Tensor:
        """[rows, columns] in float64, in every process: all the rows that the processes computed."""
        whole = torch.zeros(rows, columns, dtype=torch.float64, device=self._table_device)
        for place, values in parts:
            whole[place.start : place.stop] = values.to(whole)
        return self.sum(whole).cpu()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes; a parameter that has none in any of them keeps none."""
        if self.count == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        flat = torch.cat([has, *((torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters)])
        self.sum(flat)
        sizes = [len(has), *(p.numel() for p in parameters)]
        counts, *sums = torch.split(flat, sizes)
        for parameter, found, value in zip(parameters, counts.tolist(), sums, strict=True):
            parameter.grad = value.view_as(parameter) if found else None

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.count > 1:
            with _others_may_end():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Go on when all have come here."""
        float(self.sum(torch.zeros((), device=self._device)))

    @contextmanager
    def before_others(self, goes_first: bool) -> Iterator[None]:
        """Run a block in the processes that go first, then in the others: they find on disk what was made or mended."""
        if not goes_first:
            self.wait()
        yield
        if goes_first:
            self.wait()

    def require_same(self, facts: object, what: str) -> None:
        """Refuse to go on with others that see something else.

        Raises:
            RagxError: `facts` differ between processes.
        """
        digest = int(fingerprint(facts)[:12], 16)  # exact in float64
        seen = self.table(self.count, 1, [(range(self.number, self.number + 1), torch.tensor([[float(digest)]]))])
        if len(set(seen.flatten().tolist())) > 1:
            raise RagxError(
                f"{what} differ between the processes; all of them need the same configuration, data and run folder "
                "(with several machines, on a shared file system) and the same version of ragx"
            )

    @property
    def _table_device(self) -> torch.device:
        return self._device if self.count > 1 else torch.device("cpu")


def _refuse_other_modes() -> None:
    for name in _OTHER_MODES:
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate's {name} mode is not supported: every process of ragx finetune holds the whole model; "
                "start it with torchrun --nproc-per-node N -m ragx finetune, and train a large generator with "
                "finetune.lora: true and finetune.gradient_checkpointing: true"
            )


@contextmanager
def _others_may_end() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's name for a connection that is gone
        raise RagxError(
            f"another process of this training has ended ({str(error).splitlines()[0][:200]}); "
            "see what it said, then run: ragx finetune --resume"
        ) from error
