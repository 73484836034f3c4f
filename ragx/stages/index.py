"""`ragx index`: corpus -> index generation, whole, in parts or as an update of the one before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import file_sha256, fingerprint, read_manifest, write_text
from ragx.config import Config, dump_config
from ragx.errors import ArtifactError, ConfigError
from ragx.records import Progress, no_progress
from ragx.stages.corpus import corpus_documents, corpus_passages, deduplicator
from ragx.stages.models import (
    compute_device,
    compute_dtype,
    encoding_facts,
    passage_encoder,
    passage_encoder_loader,
    require_same_width,
    tuned_index,
    tuned_passage_encoder,
    tuned_passage_encoder_loader,
)

if TYPE_CHECKING:
    from ragx.index.build import Base, Encode, Settings, Source
    from ragx.index.encoder import Encoder
    from ragx.index.store import Index

log = logging.getLogger(__name__)


def build_index(config: Config, progress: Progress = no_progress, *, update: bool = False) -> dict[str, Any]:
    """Read, cut and encode the corpus and write the next index generation; returns `index_stats`.

    With `update`, passages that the index in use holds too keep their vectors. Where only the kind of index changes,
    all do. Where the tuned model brings its own passage encoder, its index is built too.

    Raises:
        RagxError: documents, model, disk or lock are at fault; the index in use stays as it was.
    """
    from ragx.index.generations import only_writer

    folder = config.run_dir / "index"
    with only_writer(folder):
        _build(config, folder, passage_encoder_loader(config), update, progress)
    if tuned := tuned_passage_encoder(config):
        folder = tuned_index(config)
        with only_writer(folder):
            _build(config, folder, tuned_passage_encoder_loader(config, tuned), update, progress)
    return index_stats(config)


def _build(config: Config, folder: Path, load_encoder: Callable[[], Encoder], update: bool, progress: Progress) -> None:
    from ragx.index.build import build, facts_of
    from ragx.index.generations import current_generation

    encode = _engine(config, load_encoder, progress)
    encoder = load_encoder()
    settings = index_settings(config)
    facts = facts_of(_source(config), encoder, settings)
    base = None
    if generation := current_generation(folder):
        manifest = _intact_manifest(generation)
        if manifest and all(manifest.get(part) == value for part, value in facts.items()):
            log.info("the index %s is up to date", generation)
            return
        base = _base(generation, manifest, facts, update) if manifest else None
    require_same_width(config, encoder)
    write_text(config.run_dir / "config.yaml", dump_config(config))
    duplicates = deduplicator(config)
    with closing(corpus_passages(config, corpus_documents(config), encoder.spans, duplicates)) as passages:
        build(
            folder,
            facts,
            settings,
            passages,
            encoder,
            progress,
            base=base,
            encode=encode,
            left_out=lambda: duplicates.removed,
        )


def build_tuned_index(config: Config, index: Index, weights: Path, progress: Progress) -> Index:
    """The passages of an opened index encoded by the passage encoder in `weights`, as the tuned model's index.

    Raises:
        RagxError: disk or lock are at fault, or a vector is not finite; the tuned index in use stays as it was.
    """
    from ragx.index.build import Source, build, facts_of
    from ragx.index.generations import only_writer
    from ragx.index.store import Index

    folder = tuned_index(config)
    with only_writer(folder):
        encoder, settings = tuned_passage_encoder_loader(config, weights)(), index_settings(config)
        source = Source(*(index.manifest[part] for part in ("corpus", "chunking", "encoding")))
        build(folder, facts_of(source, encoder, settings), settings, index.all_passages(), encoder, progress)
    return Index(folder, "ragx index")


def build_index_part(config: Config, part: int, parts: int, progress: Progress = no_progress) -> list[Path]:
    """Encode every `parts`-th shard of the corpus, the first job being part 1; returns the shard files.

    Raises:
        ConfigError: there is no such part.
        RagxError: documents, model, disk or lock are at fault.
    """
    from ragx.index.build import build_part, facts_of
    from ragx.index.generations import only_maker

    if not 1 <= part <= parts:
        raise ConfigError(f"--shard {part}/{parts}: parts count from 1 to {parts}")
    folder = config.run_dir / "index"
    with only_maker(folder, part, parts):
        encoder, settings = passage_encoder(config), index_settings(config)
        facts = facts_of(_source(config), encoder, settings)
        documents, duplicates = corpus_documents(config), deduplicator(config)
        with closing(corpus_passages(config, documents, encoder.spans, duplicates)) as passages:
            return build_part(folder, facts, settings, passages, encoder, progress, part=part, parts=parts)


def merge_index(config: Config, progress: Progress = no_progress) -> dict[str, Any]:
    """Join the shards of all parts into the next index generation; returns `index_stats`.

    Raises:
        ArtifactError: shards are missing, damaged or made for something else, or another process is building here.
    """
    from ragx.index.build import facts_of, merge
    from ragx.index.generations import only_writer

    folder = config.run_dir / "index"
    with only_writer(folder):
        encoder, settings = passage_encoder(config), index_settings(config)
        facts = facts_of(_source(config), encoder, settings)
        write_text(config.run_dir / "config.yaml", dump_config(config))
        duplicates = deduplicator(config)
        with closing(corpus_passages(config, corpus_documents(config), encoder.spans, duplicates)) as passages:
            dimension = encoder.dimension
            merge(folder, facts, settings, passages, dimension, progress, left_out=lambda: duplicates.removed)
    return index_stats(config)


def index_stats(config: Config) -> dict[str, Any]:
    """What the index in use holds, from its manifest: counts, lengths, kinds, recall and fingerprints."""
    from ragx.index.generations import KIND, current_generation

    folder = config.run_dir / "index"
    generation = current_generation(folder)
    if generation is None:
        raise ArtifactError(f"{folder}: no index here; run: ragx index")
    manifest = read_manifest(generation, KIND, "ragx index")
    return {
        "folder": str(generation),
        "documents": manifest["documents"],
        "passages": manifest["passages"],
        "left_out": manifest.get("left_out"),
        "characters": manifest["lengths"],
        "dimension": manifest["dimension"],
        "kind": manifest["kind_of_index"],
        "factory": manifest["factory"],
        "search": manifest["search"],
        "recall@10": manifest["recall@10"],
        "lexical": manifest["lexical"],
        "dtype": manifest["dtype"],
        "bytes": sum(facts["size"] for facts in manifest["files"].values()),
        "fingerprints": {
            "index": manifest["fingerprint"],
            **{part: fingerprint(manifest[part]) for part in ("corpus", "chunking", "encoding", "encoder")},
        },
    }


def index_settings(config: Config) -> Settings:
    """How passages are encoded, and what is built over them."""
    from ragx.index.build import Settings
    from ragx.index.encoder import auto_batch_tokens
    from ragx.index.kinds import Wanted

    section = config.index
    batch = config.encoder.batch_size
    return Settings(
        vectors=Wanted(section.kind, section.factory, section.recall_target),
        lexical=section.lexical,
        batch_tokens=(
            auto_batch_tokens(compute_device(config)) if batch == "auto" else batch * config.encoder.max_tokens
        ),
        shard_size=section.shard_size,
        dtype=compute_dtype(config),
        backend=config.encoder.backend,
    )


def _intact_manifest(generation: Path) -> dict[str, Any] | None:
    from ragx.index.generations import KIND

    try:
        return read_manifest(generation, KIND, "ragx index")
    except ArtifactError as error:
        log.warning("%s; building it anew", error)
        return None


def _base(generation: Path, manifest: dict[str, Any], facts: dict[str, object], update: bool) -> Base | None:
    """The generation in use, where its vectors were made as the new ones would be."""
    from ragx.index.build import Base, decides_vectors

    needed = ("encoder", "dtype", "backend") if update else tuple(decides_vectors(facts))
    differing = [part for part in needed if manifest.get(part) != facts[part]]
    if not differing:
        return Base(generation, (manifest["passages"], manifest["dimension"]))
    if update:
        log.warning("%s: built with another %s; every passage is encoded anew", generation, differing[0])
    return None


def _engine(config: Config, load_encoder: Callable[[], Encoder], progress: Progress) -> Encode | None:
    if config.index.engine == "local":
        return None
    try:
        from ragx.index.cluster import Cluster
    except ImportError:
        raise ConfigError("index.engine: ray: install ragx[ray]") from None
    gpu = compute_device(config).startswith("cuda")
    return Cluster(load_encoder, gpus=int(gpu), progress=progress).encode


def _source(config: Config) -> Source:
    from ragx.corpus.readers import corpus_files
    from ragx.index.build import Source

    files = {
        name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path, name in corpus_files(config.corpus.paths)
    }
    fields = config.corpus.model_dump(mode="json", exclude={"paths"})
    return Source({"files": files, **fields}, config.passages.model_dump(mode="json"), encoding_facts(config))
