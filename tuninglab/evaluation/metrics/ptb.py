"""Words of captions as coco-caption counts them: the Penn Treebank tokenizer, without Java.

coco-caption scores what Stanford's PTBTokenizer (CoreNLP 3.4.1, `-lowerCase`) makes of a caption,
less a list of punctuation. Its rules are written anew here, from what is known of its lexer and
from what it answers. Where several fit, the one that reads furthest wins, and of equals the first.
"""

import re
import unicodedata
from functools import cache

# In reports, because scores of other tokenizers are other scores.
TOKENIZER = "ptb-port"

# What coco-caption leaves out. It names brackets in capitals, but here they come in small letters
# and so they count as words, like `!!!`, `?!` and `$`, which the list has not.
UNCOUNTED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# Whole tokens that are written otherwise.
SPELLINGS = {
    **dict.fromkeys('"“”«»\x93\x94', "''"),
    **dict.fromkeys("'’\x92›‹‘‛\x91`", "'"),
    **dict.fromkeys(("---", "----", *"–—―\x96\x97"), "--"),
    **{"…": "...", "....": "...", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"€": "$", "¤": "$", "\x80": "$", "₠": "$", "£": "#", "¢": "cents"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"},
    **dict.fromkeys(("&ndash;", "&mdash;", "&nbsp;"), "--"),
}

# Their dot belongs to them, however they are written ...
SHORT = """adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd
    brig bros calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs
    elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr
    jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms
    msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty
    ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel
    tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo"""
# ... with a capital, since they are also words ...
SHORT_NAMES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
# ... and before a number.
SHORT_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
# After a single letter these begin a new sentence: the dot is a full stop.
BEGINNINGS = """A About According Additionally After An As At But Earlier He Her Here However If In
    It Last Many More Now Once One Other Our She Since So Some Such That The Their Then There These
    They This We What When While Yet You"""
FILES = """html jpeg class bat bmp cgi cpp dll doc docx exe gif htm jar java jpg mov mp3 pdf php png
    ppt sql tar txt wav xml zip gz pl ps py c h x"""

APOSTROPHE = "(?:['’\x92]|&apos;)"
ANY_APOSTROPHE = "(?:['’\x92‘‛\x91`]|&apos;)"
# Symbols that count alone; what is neither here nor a letter or digit, like emoji, goes.
SYMBOLS = (
    r"[!-/:-@\[-`{-~¡-¿×÷‖‗‚„-‣‰-‸※‾-⁄⁰⁴-⁾₀-₎℀℁℃-℆℈℉℔№-℘℞-℣℥℧℩℮ℹ℺⅀-⅄⅊-⅍⅏⅓-⅞←-⯿"
    r"、。〒・！-／：-＠［-｀｛-･￠￡￥￦“”‘’‛‹›–—―…€₠₤\x80\x91-\x94\x96\x97]"
)


def _one_of(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


def _letters() -> str:
    """Letters, the marks of living scripts and the soft hyphen, as ranges of a class."""
    ranges: list[list[int]] = []
    for code in range(0x41, 0x10000):
        kind = unicodedata.category(chr(code))[0]
        if not (kind == "L" or kind == "M" and code < 0x1000 or code == 0xAD):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


# What the rules are made of: a = apostrophe, q = any quotation mark like it.
a, q = APOSTROPHE, ANY_APOSTROPHE
LETTER = f"[{_letters()}]"
SIGN = LETTER[:-1] + r"\d]"
WORD = rf"{LETTER}{SIGN}*(?:[.!?]{LETTER}{SIGN}*)*"
PART = rf"(?:[dDoOlL]{q}(?={SIGN}{{2}}))?{SIGN}+"
HYPHENED = rf"{PART}(?:[-_\u058a\u2010\u2011]{PART})*"
# 's, 'll; where a straight apostrophe has other letters behind it, it opens a quotation.
_ENDINGS = "(?:[msdMSD]|(?i:re|ve|ll))"
CLITIC = rf"(?:(?:'|&apos;){_ENDINGS}(?![A-Za-z])|[’\x92]{_ENDINGS})"
INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
TAG = r"[A-Za-z][A-Za-z0-9_:.-]*"
ADDRESS = r"[^ \"<>|()]+[^ \"<>|.!?(){},-]"
GAP = r"[- \xa0]"

# In each rule the first group is the token; what the rule reads beyond must follow, and stays.
DIVISIONS = (
    r"(?i:(can(?=not)|gon(?=na)|got(?=ta)|lem(?=me)|gim(?=me)|wan(?=na))(?:not|na|ta|me))",
    r"(?i:('t)(?:is|was))",
    rf"({WORD}){CLITIC}",
    rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{q}[tT]",
    rf"([yY]{a}){LETTER}",
    # A full stop at the end: of a letter alone it depends on what the next caption begins with.
    rf"([A-Za-z])\.(?:\ *$|\ +(?=[A-Z])(?i:{_one_of(BEGINNINGS)})(?:\ |$))",
)
APOSTROPHES = (
    rf"({CLITIC}|[nN]{q}[tT])",
    rf"([A-HJ-XZn]{q}{LETTER}{{2,}})",
    rf"({LETTER}+[aeiouyAEIOUY]{q}[aeiouA-Z]{LETTER}*)",
    rf"({a}[nN]{a}|'[nN](?=\ |$)|[’\x92][nN]|[lLdDjJ]{a}|{a}[2-9]0s)",
    rf"({a}\d\d)(?:\ |$)",
    rf"(?i:((?:dunkin|somethin|ol){a}|{a}(?:em|till?|cause)|c{a}mon|c{a}est|s{a}mores))",
    rf"(?i:(cont{a}d\.|nor{a}easter|ev{a}ry|li{a}l|nat{a}l|cap{a}n|e{a}er))",
)
WEB = (
    rf"((?i:https?)://{ADDRESS})",
    rf"(www\.(?:[^ \"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:/{ADDRESS})?)",
    rf"((?:[^ \"`'<>|.!?(){{}},-_$]+\.)+(?:com|net|org|edu)(?:/{ADDRESS})?)",
    r"(<?[a-zA-Z0-9][^ \"<>|(){}]*@(?:[^ \"<>|(){}.]+\.)*[^ \"<>|(){}.]+>?)",
    rf"(@[a-zA-Z_][a-zA-Z_0-9]*|\#{LETTER}+)",
    rf"(<(?:[!?][A-Za-z-][^>]*|/{TAG}\ *|{TAG}(?:\ +{TAG}(?:=['\"][^'\"]*['\"])?)*\ */?)>)",
)
NUMBERS = (
    r"([-+]?(?:\d*(?:[.:,\xad]\d+)+|\d+))",
    # Dates, fractions, telephone numbers.
    r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
    rf"((?:\d{{1,4}}{GAP})?\d{{1,4}}[/⁄]\d{{1,4}})",
    rf"((?:\(\d{{2,3}}\)[ \xa0]?|(?:\+\+?)?(?:\d{{2,4}}{GAP})?\d{{2,4}}{GAP})"
    rf"\d{{3,4}}{GAP}?\d{{3,5}})",
    r"((?:(?:\+\+?)?\d{2,4}\.|\d\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
)
WORDS = (
    rf"({WORD})",
    rf"({HYPHENED})",
    # A dot before a comma ends no sentence.
    rf"((?:{WORD}|{HYPHENED})\.)[,;:]",
    rf"([A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{INITIALS}\.|[A-Za-z0-9\xad]+))+)",
    r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
    # AT&T (but at & t), C++.
    r"([A-Z]+(?:(?:&amp;|[+&])[A-Z]+)+|(?i:c\+\+|[cf]\#))",
    rf"((?i:(?:ed|ph)\.d|{_one_of(SHORT)})\.|{_one_of(SHORT_NAMES)}\.)",
    rf"(?i:({_one_of(SHORT_BEFORE_NUMBERS)}\.))\ ?\d",
    rf"({INITIALS}\.|[A-Za-z]\.)",
    rf"({SIGN}+(?:\.{SIGN}+)*\.(?i:{_one_of(FILES)}))(?:[ .?!,]|$)",
)
SIGNS = (
    # Faces: :) ^_^
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])",
    r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][-_.]?[-^x=~<>']\))",
    r"(&(?:amp|lt|gt|quot|apos|[nm]dash|nbsp|\#\d+);|(?i:-[lr][rcs]b-))",
    r"([A-Z]*\$|\#{2,}|@{2,}|\*+|(?:\\\*){1,3}|_+|[!?]{2,}|>>|<<|-{2,}|''|``|\.{3,4})",
    rf"({SYMBOLS})",
)


@cache
def _rules() -> list[re.Pattern[str]]:
    return [re.compile(r) for r in DIVISIONS + APOSTROPHES + WEB + NUMBERS + WORDS + SIGNS]


# Most words stand between blanks, and need no further look; neither do full stops and commas.
PLAIN = re.compile(r"([A-Za-z]+|[.,])(?= |$)")
TWO_IN_ONE = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))


def _longest(text: str, start: int) -> re.Match[str] | None:
    best = None
    for rule in _rules():
        found = rule.match(text, start)
        if found and (best is None or found.end() > best.end()):
            best = found
    return best


def _spelt(token: str) -> str:
    """As the tokenizer writes it; a token never holds a blank."""
    token = SPELLINGS.get(token, token).lower()
    token = token.replace("\xad", "").replace("&amp;", "&").replace("&apos;", "'")
    if re.fullmatch(rf"{APOSTROPHE}(?:[msd]|re|ve|ll|t)|n{ANY_APOSTROPHE}t", token):
        token = re.sub("[‘‛\x91]", "`", token.replace("’", "'").replace("\x92", "'"))
    if not (token[:1] == "<" and token[-1:] == ">"):
        token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    return token.replace(" ", "\xa0")


def tokens(text: str) -> list[str]:
    """The words of a caption that coco-caption counts, in small letters.

    Any text is taken. Line breaks are blanks, and what the tokenizer does not know is left out.
    A mixed fraction or a telephone number stays one token, with no-break spaces inside.
    """
    text = re.sub(r"\s", " ", text)
    found: list[str] = []
    place = 0
    while place < len(text):
        match = PLAIN.match(text, place)
        if not match or match[1].lower() in TWO_IN_ONE:
            match = _longest(text, place) if text[place] != " " else None
        if match is None:
            place += 1
            continue
        place = match.end(1)
        token = _spelt(match[1])
        if token and token not in UNCOUNTED:
            found.append(token)
    return found
