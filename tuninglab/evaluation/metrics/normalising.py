"""Texts as the VQA evaluation compares them: no punctuation, no articles, numbers as digits."""

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
MOST_PERIODS = 32
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}

# Words that the VQA evaluation gives an apostrophe back, by their endings. It knows no others:
# neither "its" nor "well", but not "theyd" without "they'd" either.
ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were "
    "wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'s": "he how somebody someone that there what when where who why",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you y'all",
}
OTHERS = "ma'am o'clock 'ow's'at 'twas y'all"


def _contractions() -> dict[str, str]:
    """Each word written with one of its apostrophes left out -> the word."""
    words = [stem + ending for ending, stems in ENDINGS.items() for stem in stems.split()]
    table = {
        word[:place] + word[place + 1 :]: word
        for word in [*words, *OTHERS.split()]
        for place, letter in enumerate(word)
        if letter == "'"
    }
    # The released table has this one the wrong way round. Its capitals ("Ive") match nothing, as
    # words are lower-cased before, and "let's" and "she's" it maps to themselves.
    return table | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()


def on_one_line(text: str) -> str:
    """The text without line breaks and tabs inside, or blanks around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """As the VQA evaluation's processPunctuation, whose oddities are kept.

    A mark is deleted if a blank stands beside it anywhere, or a comma between digits, and else
    becomes a blank. Periods go unless a digit follows, the first 32 of them.
    """
    joined = re.search(r"\d,\d", text) is not None
    deleted = (joined or f"{mark} " in text or f" {mark}" in text for mark in PUNCTUATION)
    table = {
        ord(mark): "" if gone else " " for mark, gone in zip(PUNCTUATION, deleted, strict=True)
    }
    # The released pattern means to look at the digit before too, but its look-behind is misspelt
    # and always passes; and what it gives as flags is taken as the count.
    return re.sub(r"\.(?!\d)", "", text.translate(table), count=MOST_PERIODS)


def with_digits(text: str) -> str:
    """As the VQA evaluation's processDigitArticle: lower case, digits, no articles, apostrophes."""
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalised(text: str) -> str:
    """A text as the VQA evaluation compares it.

    Source: vqaEval.py of the VQA challenge (Antol et al. 2015, Goyal et al. 2017).
    """
    return with_digits(without_punctuation(on_one_line(text)))


def compared(prediction: str, answer: str) -> tuple[str, str]:
    """Both normalised, as far as that leaves something of the answer.

    Of an answer that is an article ("A", a letter of multiple choice) or a mark ("?") normalising
    leaves nothing, and so any other such text would be equal to it: then both keep their articles,
    or else are compared as they were written.
    """
    for form in (normalised, _with_articles):
        if wanted := form(answer):
            return form(prediction), wanted
    return " ".join(prediction.split()), " ".join(answer.split())


def _with_articles(text: str) -> str:
    return " ".join(without_punctuation(on_one_line(text)).lower().split())
