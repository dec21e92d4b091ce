"""The metrics by their names."""

import difflib
import re

from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.bleu import BLEU4
from tuninglab.evaluation.metrics.choices import DA_ACCURACY, MC_ACCURACY
from tuninglab.evaluation.metrics.cider import CIDER
from tuninglab.evaluation.metrics.exact import CONTAINS, EXACT_MATCH, EXACT_MATCH_NORMALISED
from tuninglab.evaluation.metrics.metric import Metric
from tuninglab.evaluation.metrics.ranked import RANKED_ACCURACY, ROC_AUC
from tuninglab.evaluation.metrics.rouge import ROUGE_L
from tuninglab.evaluation.metrics.similarity import ANLS, RELAXED_ACCURACY, TOKEN_F1
from tuninglab.evaluation.metrics.vqa import VQA_ACCURACY, VQA_ACCURACY_OPENFLAMINGO
from tuninglab.untrusted import shown

METRICS = (
    *(EXACT_MATCH, EXACT_MATCH_NORMALISED, CONTAINS, TOKEN_F1),
    *(VQA_ACCURACY, VQA_ACCURACY_OPENFLAMINGO, DA_ACCURACY, MC_ACCURACY),
    *(ANLS, RELAXED_ACCURACY),
    *(CIDER, BLEU4, ROUGE_L),
    *(RANKED_ACCURACY, ROC_AUC),
)


def metric_named(name: str) -> Metric:
    """The metric of this name, in full ("vqa_accuracy") or short ("vqa").

    Case, hyphens and blanks do not matter: "ROUGE-L".

    Raises:
        UserError: none is called so.
    """
    for metric in METRICS:
        if _letters(name) in map(_letters, (metric.name, *metric.aliases)):
            return metric
    every = [spelt for metric in METRICS for spelt in (metric.name, *metric.aliases)]
    near = difflib.get_close_matches(name.lower(), every, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    known = ", ".join((*metric.aliases, metric.name)[0] for metric in METRICS)
    raise UserError(f"metric {shown(repr(name))} is unknown.{hint} Known: {known}.")


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
