"""Shards encoded by the workers of a Ray cluster: plain tasks, which Ray runs again where a worker died.

The workers see the run folder and the model under the same paths as this process (a shared file system, or one
machine). The cluster's address is Ray's own: `RAY_ADDRESS`, else one is started here.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ragx.errors import RagxError
from ragx.index.encoder import Encoder
from ragx.index.passages import PASSAGES, open_passages, read_passages
from ragx.index.shards import Plan, encode_part
from ragx.records import Progress, no_progress

_RETRIES = 5
_TASKS_PER_WORKER = 4


class Cluster:
    """Encodes missing shards on all workers there are; `load` loads the encoder in a worker."""

    def __init__(self, load: Callable[[], Encoder], *, gpus: int, progress: Progress) -> None:
        self._load = load
        self._gpus = gpus
        self._progress = progress

    def encode(self, building: Path, plan: Plan, missing: list[int]) -> None:
        """Write the missing shards into `building`; a task whose worker dies is run again, whole shards stay.

        Raises:
            RagxError: a worker reports an error, or tasks keep dying.
        """
        with _connected():
            workers = ray.cluster_resources().get("GPU" if self._gpus else "CPU", 1.0)
            tasks = min(len(missing), max(1, int(workers)) * _TASKS_PER_WORKER)
            remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=_RETRIES)(_encode_shards)
            groups = [missing[start::tasks] for start in range(tasks)]
            waiting = {remote.remote(self._load, building.absolute(), plan, group): len(group) for group in groups}
            self._wait(waiting, len(missing))

    def _wait(self, waiting: dict[Any, int], total: int) -> None:
        done = 0
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting))
            try:
                ray.get(ready)
            except RayTaskError as error:
                if isinstance(error.cause, RagxError):
                    raise error.cause from error
                raise
            except RayError as error:
                reason = str(error).splitlines()[0]
                raise RagxError(f"the Ray cluster gave up ({reason}); finished shards stand, run it again") from error
            done += waiting.pop(ready)
            self._progress("encoding shards on Ray", done, total)


def _encode_shards(load: Callable[[], Encoder], building: Path, plan: Plan, numbers: Iterable[int]) -> None:
    """What one task does, on any machine of the cluster."""
    encoder = load()
    with closing(open_passages(building / PASSAGES)) as database:
        for number in numbers:
            passages = read_passages(database, number * plan.shard_size, plan.shard_size)
            for _ in encode_part(building, plan, passages, encoder, lambda _: True, no_progress):
                pass


@contextmanager
def _connected() -> Iterator[None]:
    """The cluster of `RAY_ADDRESS`, the one connected already, or one of this machine's; no usage report is sent."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    dashboard = None if "RAY_ADDRESS" in os.environ else False
    ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    try:
        yield
    finally:
        ray.shutdown()
