"""What a training needs to go on exactly where it stopped: trainable weights, optimizer, position.

A checkpoint is a sealed folder: safetensors for weights, `torch.save` of plain tensors for the optimizer (read back
with weights_only), JSON for the position.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ragx.artifacts import new_folder, read_manifest, recover_folder, untrusted_json, write_text
from ragx.errors import ArtifactError, RagxError
from ragx.training.watch import Monitor

KIND = "ragx checkpoint"
VECTORS = "vectors.safetensors"
_REMEDY = "ragx finetune without --resume"


@dataclass(frozen=True, slots=True)
class Position:
    """Where training stands: optimizer steps done, the best dev NLL a token and its step, epochs without a better one,
    the share of passages that carried the posterior in the last step, how often it went back to its best weights, and
    what the first steps and the dev set showed at the start; passages encoded anew so far, and the seconds of it."""

    step: int = 0
    best_nll: float | None = None
    best_step: int = 0
    bad_epochs: int = 0
    kept_share: float = 1.0
    rollbacks: int = 0
    train_start: Monitor | None = None
    dev_start: Monitor | None = None
    refreshed: int = 0
    refresh_seconds: float = 0.0

    @property
    def weights_step(self) -> int:
        """The step whose weights a training ends with: the best, or the last without a dev set."""
        return self.step if self.best_nll is None else self.best_step


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def save(
    folder: Path,
    plan: str,
    model: nn.Module,
    position: Position,
    optimizer: torch.optim.Optimizer | None = None,
    vectors: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint atomically; `plan` fingerprints what is trained on what, `vectors` are those of passages whose
    encoder learns."""
    with new_folder(folder, KIND, plan=plan, position=dataclasses.asdict(position)) as beside:
        weights = {name: value.contiguous().cpu() for name, value in trainable(model).items()}
        try:
            save_file(weights, beside / "model.safetensors")
            if vectors is not None:
                save_file(vectors, beside / VECTORS)
            if optimizer is not None:
                torch.save(optimizer.state_dict(), beside / "optimizer.pt")
        except (SafetensorError, RuntimeError) as error:
            raise RagxError(f"{folder}: cannot be written ({_first_line(error)}); is the disk full?") from error


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> tuple[str, Position]:
    """Load a checkpoint into model and optimizer; returns its plan and position.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    recover_folder(folder)
    manifest = read_manifest(folder, KIND, _REMEDY)
    weights = load_file(folder / "model.safetensors")
    parameters = trainable(model)
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    if optimizer is not None:
        state: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True)
        optimizer.load_state_dict(state)
    return manifest["plan"], _position(manifest["position"])


def load_vectors(folder: Path) -> dict[str, Tensor]:
    """The passage vectors of a checkpoint that `load` has found whole."""
    return load_file(folder / VECTORS)


def _position(facts: dict[str, Any]) -> Position:
    starts = {name: facts[name] and Monitor(**facts[name]) for name in ("train_start", "dev_start")}
    return Position(**{**facts, **starts})


def plan_of(folder: Path) -> str | None:
    """The plan of the checkpoint in `folder`, or None where there is none."""
    recover_folder(folder)
    if not folder.exists():
        return None
    return str(read_manifest(folder, KIND, _REMEDY)["plan"])


def append_line(path: Path, record: dict[str, object]) -> None:
    """Append one line of JSON. A text may hold what some readers take for the end of a line: that is escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(untrusted_json(json.dumps(record, ensure_ascii=False)) + "\n")


def truncate_lines(path: Path, step: int) -> None:
    """Drop the lines of a file of JSON that were written after a checkpoint at `step`, and what a kill left of the
    last one.

    Raises:
        ArtifactError: another line is damaged.
    """
    if path.is_file():
        *whole, _ = path.read_bytes().split(b"\n")
        kept = [line for number, line in enumerate(whole, start=1) if _step_of(line, f"{path}: line {number}") <= step]
        write_text(path, "".join(f"{line.decode()}\n" for line in kept))


def _step_of(line: bytes, place: str) -> int:
    try:
        return int(json.loads(line.decode())["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{place} is damaged ({error}); run: {_REMEDY}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
