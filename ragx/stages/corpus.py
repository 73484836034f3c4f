"""What every stage reads the corpus with: the configured documents and passages."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

from ragx.config import Config
from ragx.records import Document, Passage

if TYPE_CHECKING:
    from ragx.corpus.duplicates import Deduplicator
    from ragx.corpus.passages import Spans

log = logging.getLogger(__name__)


def corpus_documents(config: Config) -> Generator[Document]:
    """The documents of the configured corpus, streamed."""
    from ragx.corpus.readers import Fields, read_documents
    from ragx.corpus.streams import Limits

    corpus = config.corpus
    fields = Fields(corpus.id_field, corpus.title_field, corpus.text_field)
    limits = Limits(**corpus.limits.model_dump())
    return read_documents(corpus.paths, fields, corpus.on_error, encoding=corpus.encoding, limits=limits)


def deduplicator(config: Config) -> Deduplicator:
    """What leaves out repeated passages as configured, and counts them."""
    from ragx.corpus.duplicates import Deduplicator

    return Deduplicator(config.passages.deduplicate)


def corpus_passages(
    config: Config, documents: Generator[Document], spans: Spans, duplicates: Deduplicator
) -> Generator[Passage]:
    """The passages of documents as configured, duplicates counted in the log; `spans` finds tokens.

    Whoever may stop early closes this, which closes `documents` too: parsers read ahead of them.

    Raises:
        DataError: no passage comes of a document; with `corpus.on_error: skip` it is logged and counted instead.
    """
    from ragx.corpus.passages import passages_of, word_spans
    from ragx.corpus.rejects import Rejects

    how, rejects = config.passages, Rejects(config.corpus.on_error)
    with closing(documents):
        yield from passages_of(
            documents,
            size=how.size,
            overlap=how.overlap,
            spans=spans if how.unit == "tokens" else word_spans,
            unit=how.unit,
            title=how.title,
            is_new=duplicates.is_new,
            reject=rejects.add,
        )
    rejects.count("documents without a passage")
    if how.deduplicate != "none":
        log.info("%d passages left out as %s duplicates of earlier ones", duplicates.removed, how.deduplicate)
