"""The encoder's transformer compiled by OpenVINO for this processor: the same vectors but for rounding, sooner."""

import threading
import warnings
from typing import Any

import openvino
import torch
import transformers
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from sentence_transformers.base.modules import Transformer
from torch import nn

from ragx.errors import RagxError

_SHAPES = 64
"""Compiled shapes of batches that are kept; every further one would keep its memory too."""


class CompiledTransformer(nn.Module):
    """Stands for a `Transformer` of sentence-transformers, as it was when this was made; for inference only.

    It computes a batch on one core, in as many threads at once as torch has.
    """

    def __init__(self, transformer: Transformer, features: dict[str, Any], dtype: torch.dtype) -> None:
        """Trace with an example of `features` and compile for computing in `dtype`.

        Raises:
            RagxError: OpenVINO cannot compile this model.
        """
        super().__init__()
        self._of_thread = threading.local()
        self._names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features]
        precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
        wanted = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": torch.get_num_threads(),
            "CPU_RUNTIME_CACHE_CAPACITY": _SHAPES,
        }
        try:
            traced = _trace(transformer.auto_model, {name: features[name] for name in self._names})
            frontend = FrontEndManager().load_by_framework("pytorch")
            model = frontend.convert(frontend.load(traced))
            self._compiled = openvino.Core().compile_model(model, "CPU", wanted)
        except (RuntimeError, TypeError, AttributeError, OpConversionFailure) as error:
            reason = str(error).strip().splitlines()[-1]
            raise RagxError(f"encoder.backend: openvino: cannot compile this encoder ({reason}); use torch") from error

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add the states `token_embeddings` [N, T, D] to the features."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        found = self._of_thread.request.infer([features[name].numpy() for name in self._names])[0]
        return {**features, "token_embeddings": torch.from_numpy(found)}


class _States(nn.Module):
    """Tensors in, tensor out, as tracing wants it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).last_hidden_state
        return states


def _trace(model: nn.Module, example: dict[str, torch.Tensor]) -> TorchScriptPythonDecoder:
    """Through the front end itself: `openvino.convert_model` would report its use to the network."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # tracing reads every attribute, and some of them warn
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")  # tracing warns of every branch, and of itself
            script = torch.jit.trace(_States(model, list(example)), tuple(example.values()), strict=False)  # type: ignore[no-untyped-call]
            return TorchScriptPythonDecoder(script)
    finally:
        transformers.utils.logging.set_verbosity(level)
