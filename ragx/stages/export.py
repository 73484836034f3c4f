"""`ragx export`: index and model -> a RAG checkpoint of transformers and an index that its RagRetriever opens."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import MANIFEST, new_folder, write_text
from ragx.config import Config
from ragx.errors import ArtifactError, ConfigError
from ragx.records import Progress, no_progress
from ragx.stages.models import open_model, resolve_which

if TYPE_CHECKING:
    from ragx.rag.model import RagModel

log = logging.getLogger(__name__)

EXPORT_KIND = "ragx export"
QUESTION_ROOM = 32
"""Tokens of the input that a question may need: passages which leave less are counted in a warning."""


def export(config: Config, folder: Path, *, which: str = "auto", progress: Progress = no_progress) -> dict[str, Any]:
    """Write model and index to `folder` as transformers reads them; returns what was written.

    Raises:
        ConfigError: something is configured that transformers' RAG has not.
        ArtifactError: a part is of an architecture that it has not, or `folder` holds something else than an export.
    """
    if find_spec("datasets") is None:
        raise ConfigError("export needs the datasets library; install ragx[export]")
    _require_theirs(config)
    folder = folder.absolute()
    _require_free(folder)

    from ragx.index.hf_dataset import PASSAGES, VECTORS, write_dataset
    from ragx.rag.interop import MARGINALS, Decoding, write_checkpoint

    which = resolve_which(config, which)
    model = open_model(config.model_copy(update={"dtype": "float32", "device": "cpu"}), which)
    if model.rerank is not None:
        raise ConfigError(f"transformers cannot open this: {_reordered(config)}")
    index, temperature = model.retriever.index, model.retriever.prior.values()["temperature"]
    facts: dict[str, object] = {
        "ragx": version("ragx"),
        "class": MARGINALS[config.rag.marginal],
        "model": which,
        "index": index.manifest["fingerprint"],
        "temperature": temperature,
    }
    section = config.rag
    use = Decoding(section.marginal, config.retrieval.top_k, section.num_beams, config.generator.max_answer_tokens)
    with new_folder(folder, EXPORT_KIND, **facts) as beside:
        options = write_checkpoint(beside, model.retriever.encoder, model.generator, use)
        _warn_of_cut_questions(model)
        write_dataset(beside, index, 1 / temperature, progress)
        write_text(beside / "README.md", _card(config, facts, options))
    paths = {"passages_path": str(folder / PASSAGES), "index_path": str(folder / VECTORS)}
    return {"folder": str(folder), **paths, "passages": index.passages_count, **facts}


def _require_theirs(config: Config) -> None:
    """Refuse what transformers' RAG has no place for, before anything is loaded."""
    problems = []
    if config.retrieval.mode != "dense":
        problems.append(f"retrieval.mode: {config.retrieval.mode}: their prior is of vectors alone; say dense")
    if config.retrieval.rerank not in ("auto", 0):
        problems.append(_reordered(config))
    if config.retrieval.prior != "topk":
        problems.append(f"retrieval.prior: {config.retrieval.prior}: theirs is normalised over the hits; say topk")
    if config.rag.null_passage:
        problems.append("rag.null_passage: true: theirs has no answer without a passage; say false, and train with it")
    if config.rag.decoding != "thorough":
        problems.append(f"rag.decoding: {config.rag.decoding}: theirs is thorough; say thorough")
    if not config.rag.joins_like_transformers:
        problems.append(
            "rag.input_format: prompt: theirs joins title, passage and question in one string; "
            "say transformers, and train with it"
        )
    if problems:
        raise ConfigError(*(f"transformers cannot open this: {problem}" for problem in problems))


def _reordered(config: Config) -> str:
    return f"retrieval.rerank: {config.retrieval.rerank}: their prior is of vectors alone; say 0"


def _require_free(folder: Path) -> None:
    """Refuse to overwrite anything but an earlier export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        kind = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != EXPORT_KIND:
        raise ArtifactError(f"{folder}: is there and is no export; name another folder")


def _warn_of_cut_questions(model: RagModel) -> None:
    """Their retriever cuts what is too long at its end, where the question stands."""
    from ragx.rag.prompts import RagTemplate

    template = model.generator.template
    assert isinstance(template, RagTemplate)
    long = sum(template.room(passage) < QUESTION_ROOM for passage in model.retriever.index.all_passages())
    if long:
        log.warning(
            "%d of %d passages leave fewer than %d of %d tokens to the question, which transformers cuts off",
            long,
            model.retriever.index.passages_count,
            QUESTION_ROOM,
            template.form.max_input_tokens,
        )


_MASKED = """
# transformers' RAG-Sequence lets candidates attend to the padding of their contexts; this gives it the mask. Where the
# padding's id is 0 (T5), it also scores what it fills shorter beams up with: there only num_beams=1 is right.
write, pad = model.generator.generate, model.config.generator.pad_token_id
model.generator.generate = lambda ids, **options: write(ids, **{**options, "attention_mask": ids.ne(pad).long()})
"""


def _card(config: Config, facts: dict[str, object], options: dict[str, object]) -> str:
    name, call = facts["class"], ", ".join(f"{key}={value}" for key, value in options.items())
    return f"""# {config.name}: exported with ragx {facts["ragx"]}

{name} of transformers ({facts["model"]} weights) and its index. The passages' vectors are divided by the prior's
temperature, {facts["temperature"]:.6g}, so that the softmax of their inner products is the prior p(z|x).

```python
from transformers import {name}, RagRetriever, RagTokenizer

folder = "."  # this folder
tokenizer = RagTokenizer.from_pretrained(folder)
retriever = RagRetriever.from_pretrained(
    folder, index_name="custom", passages_path=f"{{folder}}/passages", index_path=f"{{folder}}/passages.faiss"
)
model = {name}.from_pretrained(folder, retriever=retriever)
{_MASKED if config.rag.marginal == "sequence" else ""}
inputs = tokenizer("Your question?", return_tensors="pt")
ids = model.generate(
    inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    {call},
)
answer = tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
```
"""
