"""VQA accuracy: an answer is right if three other people gave it."""

from tuninglab.evaluation.metrics.metric import Metric, Scored, each
from tuninglab.evaluation.metrics.normalising import compared, normalised, on_one_line

# So many people who agree with an answer make it wholly right.
ENOUGH = 3


def _texts(one: Scored) -> tuple[str, list[str]]:
    """Prediction and answers as they are compared: normalised if not all people said the same."""
    prediction, answers = on_one_line(one.prediction), [on_one_line(text) for text in one.answers]
    if len(set(answers)) > 1:
        return normalised(prediction), [normalised(text) for text in answers]
    return prediction, answers


def official(one: Scored) -> float:
    """Mean over the people of min(1, others who gave the predicted answer / 3).

    With fewer than four answers it cannot reach 1: with two the best is 1/3, with three 2/3. A
    single answer leaves nobody to agree with, so all would score 0: there the question is whether
    it is equal after normalising, as in exact_match_normalised.
    """
    if len(one.answers) == 1:
        left, right = compared(one.prediction, one.answers[0])
        return float(left == right)
    prediction, answers = _texts(one)
    same = answers.count(prediction)
    # Who gave the predicted answer is left out of those who agree; who gave another, is not.
    own, others = min(1.0, (same - 1) / ENOUGH), min(1.0, same / ENOUGH)
    return (same * own + (len(answers) - same) * others) / len(answers)


def openflamingo(one: Scored) -> float:
    """The same, but all who gave the predicted answer leave together: those who said it see 0.

    The code tells answers apart by comparing whole records, and of VizWiz these have no number.
    What everybody said scores 0, so does a single answer.
    """
    prediction, answers = _texts(one)
    same = answers.count(prediction)
    return (len(answers) - same) * min(1.0, same / ENOUGH) / len(answers)


VQA_ACCURACY = Metric(
    "vqa_accuracy",
    "VQA accuracy",
    each(official),
    source="Antol et al. 2015, https://arxiv.org/abs/1505.00468; vqaEval.py of the VQA challenge",
    aliases=("vqa",),
)
VQA_ACCURACY_OPENFLAMINGO = Metric(
    "vqa_accuracy_openflamingo",
    "VQA accuracy as OpenFlamingo has it for VizWiz",
    each(openflamingo),
    source="vqa_metric.py of open_flamingo 2.0.1, on answers without answer_id",
    aliases=("vqa_openflamingo",),
)
