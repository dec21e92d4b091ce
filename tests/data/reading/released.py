"""Small files in the forms that benchmark sets are released in, and how tests read them."""

from typing import Any

from tuninglab.data.reading.formats import FORMATS
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.sets import DOCUMENTS
from tuninglab.data.sample import Sample


def kind_of_document(documents):
    return next((one for one in DOCUMENTS if one.fits(documents)), None)


def format_of(record):
    return next((one for one in FORMATS if one.fits(record)), None)


def read_rows(rows, reading=None, format=None):
    """The samples and problems of records: (origin, record) each."""
    reading = reading or Reading()
    samples, problems = [], []
    for origin, record in rows:
        try:
            if isinstance(record, ValueError):
                raise record
            samples += (format or format_of(record)).samples(record, origin, reading)
        except ValueError as error:
            problems.append(f"{origin}: {error}")
    return samples, problems


def read_records(*records, **options):
    return read_rows([(f"set.json, record {n}", r) for n, r in enumerate(records, 1)], **options)


def read_documents(*documents, file="set.json", reading=None):
    reading = reading or Reading()
    document = kind_of_document(documents)
    return read_rows(document.records(documents, file, reading), reading)


def sample(images: list[Any], question: str, answer: str, origin: str, **rest: Any) -> Sample:
    """What is expected: pictures, the question after them, the answer."""
    content = [{"type": "image"} for _ in images]
    content += [{"type": "text", "text": question}] if question else []
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return Sample(messages, images, origin, **rest)


def answers(*texts, ids=True):
    """Ten answers as VQA writes them; VizWiz gives them no ids."""
    return [
        {"answer": text, "answer_confidence": "yes"} | ({"answer_id": number} if ids else {})
        for number, text in enumerate(texts, 1)
    ]


COCO = {
    "info": {"year": 2014},
    "licenses": [{"id": 1, "name": "a licence"}],
    "images": [
        {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "license": 1, "height": 480},
        {"id": 25, "file_name": "COCO_val2014_000000000025.jpg", "license": 1, "height": 426},
        {"id": 30, "file_name": "COCO_val2014_000000000030.jpg", "license": 1, "height": 428},
    ],
    "annotations": [
        {"image_id": 25, "id": 7, "caption": "A giraffe by a tree."},
        {"image_id": 9, "id": 3, "caption": "Boxes of food."},
        {"image_id": 25, "id": 8, "caption": "A tall giraffe."},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "COCO_val2014_000000000042.jpg",
            "split": "restval",
            "sentids": [1, 2],
            "imgid": 0,
            "cocoid": 42,
            "sentences": [
                {"tokens": ["a", "shoe"], "raw": "A shoe.", "imgid": 0, "sentid": 1},
                {"tokens": ["a", "dog"], "raw": "A dog.", "imgid": 0, "sentid": 2},
            ],
        },
        {
            "filepath": "train2014",
            "filename": "COCO_train2014_000000000072.jpg",
            "split": "train",
            "sentids": [5],
            "imgid": 1,
            "cocoid": 72,
            "sentences": [{"tokens": ["two"], "raw": "Two.", "imgid": 1, "sentid": 5}],
        },
        {
            "filepath": "val2014",
            "filename": "COCO_val2014_000000000073.jpg",
            "split": "test",
            "sentids": [6],
            "imgid": 2,
            "cocoid": 73,
            "sentences": [{"tokens": ["bike"], "raw": "A bike.", "imgid": 2, "sentid": 6}],
        },
    ],
}
VQA_QUESTIONS = {
    "info": {"version": "2.0"},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "data_subtype": "train2014",
    "license": {},
    "questions": [
        {"image_id": 458752, "question": "What colour is it?", "question_id": 458752000},
        {"image_id": 9, "question": "Is it food?", "question_id": 9001},
    ],
}
VQA_ANNOTATIONS = {
    "info": {"version": "2.0"},
    "data_type": "mscoco",
    "data_subtype": "train2014",
    "license": {},
    "annotations": [
        {
            "question_type": "is it",
            "multiple_choice_answer": "yes",
            "answers": answers(*["yes"] * 9, "no"),
            "image_id": 9,
            "answer_type": "yes/no",
            "question_id": 9001,
        },
        {
            "question_type": "what colour is",
            "multiple_choice_answer": "red",
            "answers": answers("pink", "red", "red", "", "rose", "pink", "", "", "", "a"),
            "image_id": 458752,
            "answer_type": "other",
            "question_id": 458752000,
        },
    ],
}
CLEVR = {
    "info": {"split": "train"},
    "questions": [
        {
            "image_index": 0,
            "image_filename": "CLEVR_train_000000.png",
            "split": "train",
            "question_index": 0,
            "question_family_index": 2,
            "question": "Are there more big green things than cubes?",
            "answer": "yes",
            "program": [
                {"inputs": [], "function": "scene", "value_inputs": []},
                {"inputs": [0], "function": "greater_than", "value_inputs": []},
            ],
        }
    ],
}
GQA = {
    "02930152": {
        "semantic": [{"operation": "select", "argument": "sky", "dependencies": []}],
        "imageId": "2354786",
        "question": "Is the sky dark?",
        "answer": "yes",
        "fullAnswer": "Yes, the sky is dark.",
        "isBalanced": True,
        "groups": {"global": None, "local": "06-sky_dark"},
        "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
    }
}
SCIENCEQA = {
    "1": {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map",
        "lecture": "Maps have four directions.",
        "solution": "Look at the compass rose.",
        "split": "train",
    },
    "2": {
        "question": "What does the text say?",
        "choices": ["one", "two", "three"],
        "answer": 2,
        "hint": "It counts to three.",
        "image": None,
        "subject": "language science",
        "lecture": "",
        "solution": "",
        "split": "train",
    },
    "3": {
        "question": "Which is the answer?",
        "choices": ["yes", "no"],
        "answer": 1,
        "hint": "",
        "image": None,
        "subject": "natural science",
        "lecture": "",
        "solution": "",
        "split": "test",
    },
}
TEXTVQA = {
    "dataset_type": "train",
    "dataset_name": "textvqa",
    "dataset_version": "0.5.1",
    "data": [
        {
            "question": "What is the brand of this camera?",
            "image_id": "0054c91397f2fe05",
            "image_classes": ["Camera"],
            "flickr_original_url": "https://farm.example/1_o.jpg",
            "image_width": 1024,
            "image_height": 664,
            "answers": ["nous les gosses", "dakota", *["dakota digital"] * 8],
            "question_tokens": ["what", "is"],
            "question_id": 0,
            "set_name": "train",
        }
    ],
}
DOCVQA = {
    "dataset_name": "docvqa",
    "dataset_version": "1.0",
    "dataset_split": "val",
    "data": [
        {
            "questionId": 49153,
            "question": "What is the name?",
            "question_types": ["handwritten", "form"],
            "image": "documents/pybv0228_81.png",
            "docId": 14465,
            "ucsf_document_id": "pybv0228",
            "ucsf_document_page_no": "81",
            "answers": ["University of California", "UCSF"],
            "data_split": "val",
        }
    ],
}
OCRVQA = {
    "0816022399": {
        "imageURL": "http://images.example/51CSC5K0SJL.gif",
        "questions": ["What is the title of this book?", "Is this a sci-fi book?"],
        "answers": ["Leaving Home", "No"],
        "title": "Leaving Home",
        "authorName": "Someone",
        "genre": "Travel",
        "split": 1,
    },
    "761183272": {
        "imageURL": "http://images.example/61Y5cOdHJbL.jpg",
        "questions": ["Who wrote this book?"],
        "answers": ["Somebody"],
        "title": "Mom's Calendar",
        "authorName": "Somebody",
        "genre": "Calendars",
        "split": 3,
    },
}
AI2D = {
    "imageName": "3.png",
    "questions": {
        "Which label is the root?": {
            "abcLabel": True,
            "answerTexts": ["A", "D", "C", "B"],
            "correctAnswer": 1,
            "questionId": "3.png-0",
        }
    },
}
DOCUMENTS_RELEASED = {
    "vqa": (VQA_QUESTIONS, VQA_ANNOTATIONS),
    "coco_captions": (COCO,),
    "karpathy": (KARPATHY,),
    "clevr": (CLEVR,),
    "gqa": (GQA,),
    "scienceqa": (SCIENCEQA,),
    "textvqa": (TEXTVQA,),
    "docvqa": (DOCVQA,),
    "ocrvqa": (OCRVQA,),
    "ai2d": (AI2D,),
}

AOKVQA = {
    "split": "train",
    "image_id": 299207,
    "question_id": "22MexNkBPpdZGX6sxbxVBH",
    "question": "What is the man by the bags awaiting?",
    "choices": ["skateboarder", "train", "delivery", "cab"],
    "correct_choice_idx": 3,
    "direct_answers": ["ride", "ride", "bus", "taxi", "travelling", "traffic", "taxi", "cab"],
    "difficult_direct_answer": False,
    "rationales": ["A train would not be on the street.", "He has luggage.", "He waits."],
}
AI2D_ROW = {
    "question": "How many legs?",
    "options": ["2", "4", "1", "3"],
    "answer": "2",
    "image": {"bytes": b"\x89PNG...", "path": None},
}
NLVR2 = {
    "validation": {"4": "False", "1": "False"},
    "sentence": "There are two dogs.",
    "left_url": "https://pictures.example/l.jpg",
    "right_url": "https://pictures.example/r.jpg",
    "writer": "46",
    "identifier": "train-10171-0-0",
    "label": "False",
    "synset": "acorn",
    "query": "acorns1",
    "directory": 37,
}
NLVR2_BLIP = {
    "sentence": "One jar is open.",
    "label": "True",
    "images": ["dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png"],
}
SNLI_VE = {
    "Flickr30K_ID": "4705552913",
    "annotator_labels": ["contradiction", "contradiction"],
    "captionID": "4705552913.jpg#2",
    "gold_label": "contradiction",
    "pairID": "4705552913.jpg#2r1c",
    "sentence1": "Two women are embracing while holding packages.",
    "sentence2": "The men are fighting outside a deli.",
}
CHARTQA = {
    "imgname": "41699051005347.png",
    "query": "How many food items are shown?",
    "label": "14",
}
BLIP_VQA = {
    "question_id": 262148000,
    "question": "Where is he looking?",
    "answer": ["down", "up", "down", "skateboard"],
    "image": "val2014/COCO_val2014_000000262148.jpg",
    "dataset": "vqa",
}
VIZWIZ = {
    "image": "VizWiz_train_00000000.jpg",
    "question": "What's the name of this product?",
    "answers": [
        {"answer_confidence": "yes", "answer": "basil leaves"},
        {"answer_confidence": "yes", "answer": "basil"},
        {"answer_confidence": "maybe", "answer": "basil"},
    ],
    "answer_type": "other",
    "answerable": 1,
}
BLIP_CAPTIONS = {
    "image": "val2014/COCO_val2014_000000522418.jpg",
    "caption": ["A woman cutting a cake.", "A woman with a knife."],
}
BLIP_CAPTION = {
    "caption": "A woman cutting a cake.",
    "image": "val2014/COCO_val2014_000000522418.jpg",
    "image_id": "coco_522418",
}
MMC4 = {
    "url": "http://page.example/a",
    "could_have_url_duplicate": 0,
    "text_list": ["Before.", "A cat sleeps.", "It is warm.", "A dog barks.", "The end."],
    "image_info": [
        {
            "image_name": "dog.png",
            "raw_url": "http://page.example/dog.png",
            "matched_text_index": 3,
            "matched_sim": 0.31,
        },
        {
            "image_name": "cat.png",
            "raw_url": "http://page.example/cat.png",
            "matched_text_index": 1,
            "matched_sim": 0.27,
        },
        {
            "image_name": "button.png",
            "raw_url": "http://page.example/button.png",
            "matched_text_index": 4,
            "matched_sim": 0.2,
        },
    ],
    "similarity_matrix": [
        [0.1, 0.26, 0.1, 0.31, 0.1],
        [0.1, 0.27, 0.2, 0.26, 0.1],
        [0.1, 0.25, 0.1, 0.1, 0.2],
    ],
}
LAION = {"URL": "https://pictures.example/1.jpg", "TEXT": "A chair", "WIDTH": 5, "HEIGHT": 5}
MEME = {"id": 42953, "img": "img/42953.png", "label": 0, "text": "its their character"}
RECORDS_RELEASED = {
    "aokvqa": AOKVQA,
    "choices": AI2D_ROW,
    "nlvr2": NLVR2,
    "nlvr2 ": NLVR2_BLIP,
    "snli_ve": SNLI_VE,
    "chartqa": CHARTQA,
    "query-response": BLIP_VQA,
    "query-response ": VIZWIZ,
    "captions": BLIP_CAPTION,
    "captions ": BLIP_CAPTIONS,
    "mmc4": MMC4,
    "hateful_memes": MEME,
    "laion": LAION,
}
