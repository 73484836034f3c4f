"""`ragx index`: corpus -> index generation."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import file_sha256, fingerprint, read_manifest, write_text
from ragx.config import Config, dump_config
from ragx.errors import ArtifactError
from ragx.records import Progress, no_progress
from ragx.stages.corpus import corpus_documents, corpus_passages
from ragx.stages.models import compute_dtype, encoding_facts, passage_encoder

if TYPE_CHECKING:
    from ragx.index.build import Source
    from ragx.index.encoder import Encoder

log = logging.getLogger(__name__)


def build_index(config: Config, progress: Progress = no_progress) -> dict[str, Any]:
    """Read, cut and encode the corpus and write the next index generation; returns `index_stats`.

    Raises:
        RagxError: documents, model, disk or lock are at fault; the index in use stays as it was.
    """
    from ragx.index.build import build, current_generation

    source = _source(config)
    encoder = passage_encoder(config)
    folder = config.run_dir / "index"
    if (generation := current_generation(folder)) and _is_up_to_date(generation, source, encoder, config):
        log.info("the index %s is up to date", generation)
        return index_stats(config)
    write_text(config.run_dir / "config.yaml", dump_config(config))
    build(
        folder,
        source,
        corpus_passages(config, corpus_documents(config), encoder.spans),
        encoder,
        lexical=config.index.lexical == "bm25",
        batch_size=config.encoder.batch_size,
        shard_size=config.index.shard_size,
        dtype=compute_dtype(config),
        progress=progress,
    )
    return index_stats(config)


def index_stats(config: Config) -> dict[str, Any]:
    """What the index in use holds, from its manifest: counts, kinds and fingerprints."""
    from ragx.index.build import KIND, current_generation

    folder = config.run_dir / "index"
    generation = current_generation(folder)
    if generation is None:
        raise ArtifactError(f"{folder}: no index here; run: ragx index")
    manifest = read_manifest(generation, KIND, "ragx index")
    return {
        "folder": str(generation),
        "documents": manifest["documents"],
        "passages": manifest["passages"],
        "dimension": manifest["dimension"],
        "kind": manifest["kind_of_index"],
        "lexical": manifest["lexical"],
        "bytes": sum(facts["size"] for facts in manifest["files"].values()),
        "fingerprints": {
            "index": manifest["fingerprint"],
            **{part: fingerprint(manifest[part]) for part in ("corpus", "chunking", "encoder")},
        },
    }


def _is_up_to_date(generation: Path, source: Source, encoder: Encoder, config: Config) -> bool:
    from ragx.index.build import KIND

    try:
        manifest = read_manifest(generation, KIND, "ragx index")
    except ArtifactError as error:
        log.warning("%s; building it anew", error)
        return False
    wanted = dataclasses.asdict(source) | {"encoder": encoder.fingerprint, "lexical": config.index.lexical}
    return all(manifest.get(part) == facts for part, facts in wanted.items())


def _source(config: Config) -> Source:
    from ragx.corpus.readers import corpus_files
    from ragx.index.build import Source

    files = {
        name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path, name in corpus_files(config.corpus.paths)
    }
    fields = config.corpus.model_dump(mode="json", exclude={"paths"})
    return Source({"files": files, **fields}, config.passages.model_dump(mode="json"), encoding_facts(config))
