"""Questions -> predictions: retrieval and answers in batches, each question scored by every metric."""

from collections.abc import Sequence

from ragx.artifacts import untrusted
from ragx.corpus.answers import holds_answer
from ragx.evaluation.metrics import Metric, Outcome
from ragx.rag.model import Answered, RagModel
from ragx.rag.retriever import Retrieval
from ragx.records import Example, Prediction, Progress


def predict(
    model: RagModel,
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    *,
    decoding: str,
    num_beams: int,
    batch_size: int,
    progress: Progress,
) -> list[Prediction]:
    """Answer and score every example. Retrieval goes as deep as the metrics look; the answer sees the first K."""
    depth = max([model.retriever.settings.top_k, *(metric.cutoff or 0 for metric in metrics)])
    depth = min(depth, model.retriever.index.passages_count)
    predictions: list[Prediction] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        questions = [example.question for example in batch]
        deep = model.retriever(questions, depth)
        answered = model.answer(
            questions,
            decoding=decoding,
            num_beams=num_beams,
            retrieval=model.retriever.first(deep, model.retriever.settings.top_k),
            references=[example.answers[0] for example in batch],
        )
        predictions += [_prediction(example, row, deep, answered, metrics) for row, example in enumerate(batch)]
        progress("answering", len(predictions), len(examples))
    return predictions


def _prediction(
    example: Example, row: int, deep: Retrieval, answered: Answered, metrics: Sequence[Metric]
) -> Prediction:
    assert answered.reference_nll is not None and answered.reference_tokens is not None
    decoded, passages = answered.decoded[row], deep.passages[row]
    outcome = Outcome(
        answer=decoded.text,
        documents=tuple(passage.document_id for passage in passages),
        holds_answer=tuple(holds_answer(passage.text, example.answers) for passage in passages),
        nll=answered.reference_nll[row],
        tokens=answered.reference_tokens[row],
    )
    return Prediction(
        id=example.id,
        question=example.question,
        answers=example.answers,
        answer=untrusted(decoded.text),
        log_probability=decoded.log_probability,
        reference_tokens=outcome.tokens,
        retrieved=tuple(passage.id for passage in passages),
        scores={metric.name: metric.score(outcome, example) for metric in metrics},
    )
