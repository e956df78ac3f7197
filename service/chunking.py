"""Text to sentences, as character spans. Knows punctuation and abbreviations; knows no tokens and no model.

The rules and abbreviations of some thirty languages are those of sentencex (Wikimedia). It asks for the
language, which our callers do not say: the letters and the frequent words of each piece of text tell it. A
sentence ends where that language and English agree, because English names stand in texts of every language.
The rest is what sentencex leaves out: blank lines, lists, and ends it sees where there is none (`is_end`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise

import sentencex

# sentencex holds the GIL, and in text without spaces its time grows with the square of the length: seconds
# for 40,000 characters of Chinese, 4 ms for 2,048. The end of a piece is never taken for that of a sentence.
PIECE_CHARACTERS = 2048

FREQUENT_WORDS = {
    "en": "the of and is was to that for with it are he she his by from this not you we they has but",
    "de": "der das und ist den von zu mit für auf nicht ein eine dem im sich des wird auch wurde es bis sind",
    "fr": "le les et des est dans une du au pour qui sur il elle ils par pas avec sont aux ont était",
    "es": "el los y las del una por con su es como más pero sus fue al desde son para está",
    "it": "il di che è della per non sono gli nel alla dei con si anche delle dal ha lo ed",
    "pt": "o os e uma não em da dos das ao na foi são pela mais se com um às também",
    "nl": "het een van en niet dat zijn op te voor met aan ook door naar werd bij is",
    "pl": "w z się jest na nie że był oraz przez od są po jak jego",
}
LANGUAGES_OF_WORD = {
    word: [language for language, words in FREQUENT_WORDS.items() if word in words.split()]
    for word in " ".join(FREQUENT_WORDS.values()).split()
}
LETTERS = {
    "ru": re.compile("[а-я]"),
    "uk": re.compile("[іїєґ]"),
    "el": re.compile("[α-ω]"),
    "hi": re.compile("[अ-ह]"),
}
WORD, LETTER = re.compile(r"\w+"), re.compile(r"[^\W\d_]")

# Missing in the lists of sentencex, or there in one language only while short texts do not tell theirs.
ABBREVIATION_LISTS = {
    "always": "approx ms mx figs eds inkl exkl hrsg bspw geb gest dipl abb allg aufl bzw usw mme mmes mlle"
    " ste mgr cie sra sras srta dña aprox ee profa ltda sig sigg dott dott.ssa avv dhr mevr bijv tj inż św"
    " m.in godz hab т.е доц обл млрд табл д ул gs pgs ths tp ts",
    "before a number": "no nr núm vol ch chap cap eq eqs fig figs sec art p pp pág págs pag bd abs kap tab"
    " ref v fol ziff ed est tel str av стр с рис табл гл п ст ч",
}
ABBREVIATIONS = {kind: frozenset(words.split()) for kind, words in ABBREVIATION_LISTS.items()}
ORDINAL_FOLLOWERS = ("Jahrhundert", "Jahrtausend", "Jh.", "Auflage", "Kapitel")

# One character for one, so that offsets stay. sentencex panics where a space takes more than a byte and takes
# no ellipsis for an end; lone surrogates cannot become UTF-8.
DISGUISES: dict[int, str] = {
    **{code: " " for code in range(0x80, 0x3001) if chr(code).isspace() and code != 0x2029},
    **dict.fromkeys(map(ord, "\r\v\x85\u2028"), "\n"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
    ord("…"): ".",
    ord("\u037e"): "?",
}
GREEK_QUESTION = re.compile(r";(?<=[α-ωά-ώ];)(?=\s|\Z)")
ANSWER_NO = re.compile(r"\b[Nn]o(?=\.\s+[^\W\d])")  # to sentencex always "number"

BLANK_LINE = re.compile(r"\n\s*\n|\u2029\s*")
LIST_MARKER = re.compile(
    r"^[^\S\n]*(?:(?:[-–—*+•‣◦▪●·]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{2,4}|[IVX]{2,4})[.)])[^\S\n]+(?=\S)|"
    r"(?:\d{1,3}|[一二三四五六七八九十]{1,3})、)",
    re.MULTILINE,
)
POSSIBLE_END = re.compile(r"[^\w\s,:'\"()/-]\s*\S")  # spares short lines the rest
MARKS, CLOSERS, OPENERS, NEVER_FIRST = ".!?…", "\"'”’“»›)]", "\"'“‘„«»¿¡([", ",;:)]}，；：、）」』"
QUOTES = "\"'“”‘’„‚«»‹›"
ELLIPSES = ("..", "...", "....", "…", "……")
LOOK_BACK_CHARACTERS = 24  # an abbreviation, closing quotes and spaces
BRACKETED_SENTENCE = re.compile(
    r"[(\[][^()\[\]]+\s[^()\[\]]*[.!?][\"'”’]*[)\]]\s+(?=\w)|（[^（）]*[。！？]）\s*(?=\w)"
)
UNSPACED = re.compile("[\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
SPACES = re.compile(r"\s*")


def sentences(text: str) -> list[tuple[int, int]]:
    """Split `text` into sentences: half-open spans of code points in order, covering it exactly once.

    White space belongs to the sentence before it, and to the first at the very beginning.
    """
    plain = text.replace("\r\n", " \n").translate(DISGUISES)
    plain = ANSWER_NO.sub("on", GREEK_QUESTION.sub("?", plain))
    starts = list(sentence_starts(text, plain))
    if not text:
        return []
    return list(pairwise([0, *starts[1:], len(text)]))


def sentence_starts(text: str, plain: str) -> Iterator[int]:
    """Yield where sentences begin, never at white space; `plain` is `text` disguised."""
    begin = 0
    for gap in [*BLANK_LINE.finditer(plain), None]:
        end = gap.start() if gap else len(plain)
        for item, body, item_end in list_items(plain, begin, end):
            yield item
            yield from inner_starts(text, plain, body, item_end)
        begin = gap.end() if gap else end


def list_items(plain: str, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, start behind the marker, end) of a paragraph's list items, or of the paragraph itself."""
    first = skip_spaces(plain, begin)
    if first >= end:
        return
    markers = list(LIST_MARKER.finditer(plain, begin, end))
    if len(markers) == 1 and markers[0].start() > first and not is_after_colon(plain, markers[0].start()):
        markers = []  # a wrapped line that happens to begin with a dash or a number
    items = [(skip_spaces(plain, marker.start()), marker.end()) for marker in markers]
    if not items or items[0][0] > first:
        items.insert(0, (first, first))
    for (item, body), (next_item, _) in pairwise([*items, (end, end)]):
        yield item, body, next_item


def inner_starts(text: str, plain: str, begin: int, end: int) -> Iterator[int]:
    """Yield where sentences begin strictly between `begin` and `end`, piece by piece."""
    if POSSIBLE_END.search(plain, begin, end) is None:
        return
    may_begin_small = plain[begin:end].islower()
    while begin < end:
        stop = min(begin + PIECE_CHARACTERS, end)
        # Quotes and brackets that open behind `reach` may close in the next piece only.
        reach = end if stop == end else stop - PIECE_CHARACTERS // 8
        agreed = agreed_starts(plain, begin, stop)
        starts = [start for start in agreed if start < reach and is_end(text, start, may_begin_small)]
        starts = with_words([*bracketed_starts(text, plain, [begin, *starts], reach)], plain, begin, reach)
        yield from starts
        if stop == end:
            return
        middle = begin + PIECE_CHARACTERS // 2
        last_space = plain.rfind(" ", middle, reach) + 1
        begin = starts[-1] if starts and starts[-1] > middle else last_space or reach


def agreed_starts(plain: str, begin: int, stop: int) -> list[int]:
    """List where, by the rules of every language of a piece, a sentence begins."""
    piece = plain[begin:stop]
    ends = set.intersection(*(ends_by_rules(language, piece) for language in languages_of(piece)))
    return sorted({before_quotes(plain, skip_spaces(plain, begin + end)) for end in ends} - {begin})


def languages_of(piece: str) -> set[str]:
    """Name the languages whose rules apply to a piece: English, that of its words, those of its letters."""
    votes = Counter(
        language for word in WORD.findall(piece) for language in LANGUAGES_OF_WORD.get(word.lower(), ())
    )
    by_words = {language for language, _ in votes.most_common(1)}
    by_letters = {language for language, letters in LETTERS.items() if letters.search(piece)}
    return {"en"} | by_words | by_letters


def ends_by_rules(language: str, piece: str) -> set[int]:
    """List where sentencex ends sentences of `piece` short of its end; nowhere where it panics."""
    try:
        lengths = map(len, sentencex.segment(language, piece))
        return set(accumulate(lengths)) - {len(piece)}
    except BaseException as error:  # a panic of Rust is no Exception, and no server survives it unnoticed
        if type(error).__name__ != "PanicException":
            raise
        return set()


def bracketed_starts(text: str, plain: str, starts: list[int], stop: int) -> Iterator[int]:
    """Yield `starts` but the first, and the starts behind sentences that stand in brackets as a whole."""
    for start, next_start in pairwise([*starts, stop]):
        if start != starts[0]:
            yield start
        while plain[start] in "([（" and (bracketed := BRACKETED_SENTENCE.match(plain, start, next_start)):
            start = bracketed.end()
            if text[start].islower():
                break
            yield start


def with_words(starts: list[int], plain: str, begin: int, stop: int) -> list[int]:
    """Keep the starts behind a letter and before a word: numbers alone and marks alone are no sentences."""
    kept, has_letter = [], False
    bounds = [begin, *starts, stop]
    for previous, start, end in zip(bounds, starts, bounds[2:], strict=False):
        has_letter = has_letter or LETTER.search(plain, previous, start) is not None
        if has_letter and WORD.search(plain, start, end):
            kept.append(start)
            has_letter = False
    return kept


def is_end(text: str, start: int, may_begin_small: bool) -> bool:
    """Say whether a sentence can end before `start`, where by the rules of its languages it does."""
    following = (text[start : start + 3].lstrip("–—-").lstrip() or text[start])[0]
    before = text[max(0, start - LOOK_BACK_CHARACTERS) : start]
    unspaced = before.rstrip()
    unquoted = unspaced.rstrip(CLOSERS)
    words = unquoted.rstrip(MARKS)
    mark = unquoted[len(words) :]
    if not mark or following in NEVER_FIRST:  # no mark: that of another script, which abbreviates nothing
        return following not in NEVER_FIRST
    word = "".join(words.split()[-1:]).lstrip(OPENERS)
    if len(unspaced) == len(before):
        return is_unspaced_end(word, mark, following)
    if following.islower():
        is_shortened = word.isdigit() or "." in word or (len(word) <= 3 and not may_begin_small)
        if mark in ELLIPSES or len(unquoted) < len(unspaced) or (mark == "." and is_shortened):
            return False
    return mark != "." or not is_abbreviation(word, text, start)


def is_unspaced_end(word: str, mark: str, following: str) -> bool:
    """Say whether a mark without a space behind it ends a sentence, as in Chinese, or is part of a name."""
    if UNSPACED.match(following) is None:
        return False
    return mark.strip("!?") == "" or (mark == "." and UNSPACED.match(word[-1:]) is not None)


def is_abbreviation(word: str, text: str, start: int) -> bool:
    """Say whether `word` abbreviates, or is an ordinal, before what stands at `start`."""
    if word.isdigit():
        return text.startswith(ORDINAL_FOLLOWERS, start)
    is_initial = len(word) == 1 and word.isupper() and not word.isascii()  # sentencex knows those of Latin
    if is_initial or "\u0e00" < word[-1:] < "\u0e80":  # Thai abbreviates with full stops and ends with spaces
        return True
    kind = "before a number" if text[start].isdigit() else "always"
    return word.lower() in ABBREVIATIONS["always"] or word.lower() in ABBREVIATIONS[kind]


def is_after_colon(plain: str, start: int) -> bool:
    """Say whether the line before `start` ends with a colon."""
    return plain[max(0, start - LOOK_BACK_CHARACTERS) : start].rstrip().endswith((":", "："))


def skip_spaces(plain: str, start: int) -> int:
    """Give the first position from `start` on that is no white space."""
    spaces = SPACES.match(plain, start)
    return spaces.end() if spaces else start


def before_quotes(plain: str, start: int) -> int:
    """Step back before quotes that open at `start`, which sentencex gives to the sentence before."""
    before = plain[max(0, start - LOOK_BACK_CHARACTERS) : start]
    unquoted = before.rstrip(QUOTES)
    return start - len(before) + len(unquoted) if unquoted[-1:].isspace() else start
