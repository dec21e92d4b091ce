"""Stems of words, as OK-VQA's answers are released: only where nltk and its data are installed."""

from collections.abc import Callable
from importlib import import_module


def okvqa_stemmer() -> Callable[[str], str] | None:
    """From an answer to the stems of its words; None where that cannot be done.

    As OK-VQA's authors did it (open_flamingo, eval/ok_vqa_utils.py): words in -ing become the
    verb that WordNet has, plural nouns become singular, others stay. Their list of some hundred
    exceptions ("clothes": "cloth") is not applied.

    It takes nltk with its data for tokens, parts of speech and WordNet (punkt_tab,
    averaged_perceptron_tagger_eng, wordnet), and inflection.
    """
    try:
        nltk, singular = import_module("nltk"), import_module("inflection").singularize
        lemmatizer = nltk.stem.WordNetLemmatizer()

        def stem(answer: str) -> str:
            """The stems of an answer's words, one blank between."""
            words = []
            for word, part in nltk.pos_tag(nltk.word_tokenize(answer)):
                if word.endswith("ing"):
                    word = lemmatizer.lemmatize(word, "v")
                elif part in ("NNS", "NNPS"):
                    word = singular(word)
                words.append(word)
            return " ".join(words)

        # What nltk lacks of its data it tells at the first use.
        stem("riding horses")
    except (ImportError, LookupError):
        return None
    return stem
