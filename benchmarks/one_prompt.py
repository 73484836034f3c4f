"""All passages of a question in one prompt, best first: how answers from retrieved text are commonly generated, where
RAG has a prompt for each and marginalises over them."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.separate_peer import Lesson
from ragx.rag.model import Answered, RagModel
from ragx.rag.retriever import Retrieval, Retriever
from ragx.records import Passage
from ragx.stages.models import open_model


class OnePrompt(RagModel):
    """A RAG model whose generator reads the K hits of a question as one passage."""

    @torch.no_grad()
    def answer(self, questions: Sequence[str], *, retrieval: Retrieval | None = None, **how: Any) -> Answered:
        """As RagModel answers from one passage; what it was retrieved as stays as it is."""
        found = retrieval or self.retriever(questions)
        one = torch.zeros((len(questions), 1), device=found.scores.device)
        return super().answer(
            questions, retrieval=Retrieval([[joined(row)] for row in found.passages], one, one), **how
        )


def joined(passages: Sequence[Passage]) -> Passage:
    """Titles and texts of passages as one, which bears the number of the first."""
    parts = [f"{passage.title}\n{passage.text}" if passage.title else passage.text for passage in passages]
    return dataclasses.replace(passages[0], title="", text="\n\n".join(parts))


def with_hits(retriever: Retriever, lessons: Sequence[Lesson]) -> list[Lesson]:
    """Each lesson with the K passages that its question finds, its own in the last one's place where it is missing."""
    found = []
    for start in range(0, len(lessons), 64):
        part = lessons[start : start + 64]
        with torch.no_grad():
            hits = retriever([lesson.example.question for lesson in part]).passages
        for lesson, row in zip(part, hits, strict=True):
            missing = not {passage.number for passage in row} & set(lesson.positives)
            read = [*row[:-1], lesson.passage] if missing else row
            found.append(dataclasses.replace(lesson, passage=joined(read)))
    return found


@contextmanager
def reading_all_at_once() -> Iterator[None]:
    """Within it, models that `stages.evaluate` opens are of this kind."""

    def opened(*arguments: Any, **named: Any) -> OnePrompt:
        model = open_model(*arguments, **named)
        return OnePrompt(model.retriever, model.generator, model.marginal)

    with mock.patch("ragx.stages.answer.open_model", opened):
        yield
