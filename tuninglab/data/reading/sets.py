"""The benchmark sets that are read as they are released, in the order of looking for them."""

from tuninglab.data.reading.caption_sets import COCO, KARPATHY, LAION
from tuninglab.data.reading.choices import (
    AI2D,
    AI2D_ROWS,
    AOKVQA,
    AOKVQA_DIRECT,
    CHOICES,
    SCIENCEQA,
)
from tuninglab.data.reading.interleaved import MMC4
from tuninglab.data.reading.memes import HATEFUL_MEMES
from tuninglab.data.reading.ocr import CHARTQA, DOCVQA, OCRVQA, TEXTVQA
from tuninglab.data.reading.reasoning import CLEVR, GQA, NLVR2, SNLI_VE
from tuninglab.data.reading.vqa import VQA

DOCUMENTS = (
    *(VQA, CLEVR, COCO, KARPATHY, DOCVQA, TEXTVQA),
    *(AI2D, SCIENCEQA, OCRVQA, GQA),
)
# Direct answers of A-OKVQA and rows of AI2D look like others before them: --format names them.
FORMATS = (
    *(MMC4, AOKVQA, AOKVQA_DIRECT, CHOICES, AI2D_ROWS, NLVR2, SNLI_VE, CHARTQA),
    *(HATEFUL_MEMES, LAION),
)
