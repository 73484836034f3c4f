"""Ranking metrics by ir-measures (trec_eval): documents among the first passages, each at its best passage."""

from collections.abc import Sequence

import ir_measures

from ragx.records import Prediction

KINDS = {
    "recall": ir_measures.R,
    "mrr": ir_measures.RR,
    "ndcg": ir_measures.nDCG,
    "hit": ir_measures.Success,
    "map": ir_measures.AP,
}
R_PRECISION_DEPTH = 20


def ranking(kind: str, cutoff: int, predictions: Sequence[Prediction]) -> list[float]:
    """The metric of each question over its first `cutoff` passages; `rprecision` is KILT's (Petroni et al. 2021).

    Without gold documents the first passage that holds an answer counts as the gold one (DPR's top-k accuracy).
    """
    measure = ir_measures.Rprec if kind == "rprecision" else KINDS[kind] @ cutoff
    qrels, run = [], []
    for number, prediction in enumerate(predictions):
        gold, ranked = _judged(prediction, cutoff)
        qrels += [ir_measures.Qrel(str(number), document, 1) for document in sorted(gold)]
        run += [ir_measures.ScoredDoc(str(number), name, -float(rank)) for rank, name in enumerate(ranked)]
    found = {result.query_id: float(result.value) for result in ir_measures.iter_calc([measure], qrels, run)}
    return [found.get(str(number), 0.0) for number in range(len(predictions))]


def _judged(prediction: Prediction, cutoff: int) -> tuple[set[str], list[str]]:
    """Gold and ranked names; a question that nothing was retrieved for keeps its gold ones and so scores 0."""
    hits = (prediction.hits or ())[:cutoff]
    if prediction.doc_ids:
        return set(prediction.doc_ids), list(dict.fromkeys(hit.document_id for hit in hits))
    first = next((rank for rank, hit in enumerate(hits) if hit.holds_answer), -1)
    return {str(first)}, [str(rank) for rank in range(len(hits))]
