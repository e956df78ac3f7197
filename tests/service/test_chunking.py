from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.chunking import ABBREVIATION_LISTS, PIECE_CHARACTERS, ends_by_rules, sentences

# Every tuple is one text, cut where it is to be cut.
TEXTS = {
    "three": (
        "Berlin is the capital of Germany. ",
        "Its population is 3.85 million. ",
        "The city is known for its history.",
    ),
    "mixed": ("This is English. ", "这是中文。", "Again English. ", "Das ist z. B. Deutsch. ", "Fin."),
    "small letters": ("i like it. ", "it was late. ", "then i slept."),
    "marks alone": ("Thanks. ... ", "Great! 👍"),
    "marks that never begin": ("这是理论。：212–219",),
    "marks that never begin, behind ascii": ("他说好!，然后走了。",),
    "runs of marks": ("Really?! ", "Yes!!! ", "OK."),
    "leading white space": ("\n\n  Hello.  ", "World.  \n"),
    "white space of Unicode": ("One.\u00a0\u3000", "Two.\u2009", "Three."),
    "thai": ("สวัสดีครับ ระยะ 9 กม. ไปยังวัด",),
    "chinese": ("今天天气很好。", "我去公园。", "你呢?", "真的吗？！", "好。"),
    "japanese": ("これはペンです。", "本当ですか?", "はい！", "「行こう。」", "と彼は言った。"),
    "korean": ("안녕하세요. ", "반갑습니다. ", "잘 가요!"),
    "arabic": ("كيف حالك؟ ", "أنا بخير؛ شكرا لك. ", "إلى اللقاء."),
    "urdu": ("یہ پہلا ہے۔ ", "یہ دوسرا ہے۔"),
    "hindi": ("यह एक वाक्य है। ", "जॉन एफ. केनेडी आए। ", "क्या आप ठीक हैं?"),
    "greek": ("Τι κάνεις; ", "Ο κ. Παπαδόπουλος ήρθε. ", "Είναι π.χ. εδώ."),
    "armenian": ("Սա նախադասություն է։ ", "Սա երկրորդն է։"),
    "amharic": ("ይህ ነው። ", "ሁለተኛ ነው።"),
    "burmese": ("ဒါကစာကြောင်းပါ။ ", "နောက်တစ်ခု။"),
    "answer no": ("Dijo que no. ", "Luego se fue."),
    # quotes, brackets, ellipses
    "quotes, straight": ('"He left." ', "She stayed. ", '"Stop!" he said. ', '"Go."'),
    "quotes, english": ("He said: “Stop! Now.” and left. ", "“I ran.” ", "She cried."),
    "quotes, german": ("„Er ging.“ ", "Sie blieb. ", "»Gut.« ", "Ende."),
    "quotes, french": ("«Il part.» ", "« Non. » ", "Elle reste."),
    "quotes, swedish": ("Han gick. ", "”Hej.” ", "Sedan gick hon."),
    "quotes, japanese": ("「彼は去った。」", "彼女は残った。"),
    "quotes, dash behind": ("„Да.“ – каза той. ", "Тя си тръгна."),
    "brackets": ("(He left.) ", "She stayed (see p. 5). ", "[She did so.] ", "End."),
    "brackets, chinese": ("（完。）", "下一句。"),
    "ellipses": ("Wait... what? ", "Well… maybe. ", "I see… ", "Yes... ", "Good."),
    "ellipses, chinese": ("我……我不知道。", "好。"),
    # lines and lists
    "line break": ("One line\nwraps here. ", "Another one."),
    "line break of windows": ("One line\r\nwraps here.\r\n\r\n", "Another one."),
    "heading": ("A heading\n\n", "The text starts.\n \n", "Goes on."),
    "blank line without words": ("One.\n\n", "***\n\n", "Two."),
    "paragraph separator": ("One\u2029", "two"),
    "line separators": ("One\u2028\u2028", "two\u0085\u0085", "three\r\r", "four"),
    "list of numbers": ("1. First. ", "Still first.\n", "2. Second\n", "3) Third"),
    "list of dashes": ("- one\n", "- two\n", "- three"),
    "list of bullets": ("To buy:\n", "• milk\n", "• eggs and\n  ham\n", "• tea"),
    "list of letters": ("a) first\n", "b) second"),
    "list of one": ("Note:\n", "- only this"),
    "list of romans": ("I. Introduction\n", "II. Method"),
    "list of chinese": ("一、第一\n", "二、第二"),
    "no list": ("He was\n- as they say - late.",),
    "list in a line": ("1. First. ", "2. Second."),
}


@pytest.mark.parametrize("expected", TEXTS.values(), ids=TEXTS.keys())
def test_sentences(expected: tuple[str, ...]) -> None:
    text = "".join(expected)
    assert tuple(text[start:end] for start, end in sentences(text)) == expected


ONE_SENTENCE = [
    "Dr. Smith paid $3.50 to J. R. Inc. yesterday.",
    "J. R. R. Tolkien wrote it",
    "The U.S. Army came at 5 p.m. or 6 a.m. today",
    "Use e.g. this one, i.e. that, approx. five",
    "No. 5, Fig. 3, vol. 2, ch. 7, pp. 3-5 and Smith et al. 2010 vs. Jones",
    "We met Mr. and Mrs. Brown, Ms. Green and Prof. White in St. Louis",
    "He works at Yahoo! Inc. in town",
    "Das gilt z. B. hier, d. h. immer usw. und Nr. 5 von Dr. Müller bzw. anderen",
    "Am 3. Oktober 1990 und im 19. Jahrhundert unter Ludwig XIV. von Frankreich",
    "M. Dupont et Mme. Durand arrivent p. ex. demain",
    "El Sr. Pérez y la Sra. López viven en EE. UU. desde ayer",
    "В 1990 г. он жил, т. е. работал, в г. Москве на ул. Ленина",
    "Книга Джона К. Мессенджера",
    "Адамс, Ратерфорд Б. Хейс",
    "L’an 52 av. J.-C. et puis",
    "«Non!» dit-il",
    "Il sig. Rossi e la sig.ra Bianchi, ecc. sono qui",
    "O Sr. Silva e a Sra. Souza, p. ex., foram",
    "Dhr. Jansen en mevr. De Vries zijn er",
    "2. Dünya Savaşı bitti",
    "“Sırrı haline geldi.” şeklinde yazdı",
    "TS. Nguyễn và TP. Hồ Chí Minh",
    "See https://example.com/a.b?x=1.2&y=Hello!World and www.example.com for it",
    "Mail John.Doe@Example.co.uk now",
    "Version 1.2.3 runs on 10.0.0.1 at 10.30 or 10:30 from config.yaml and README.Md here",
    "Ends here.Next",
]


@pytest.mark.parametrize("sentence", ONE_SENTENCE)
def test_no_end_inside(sentence: str) -> None:
    assert len(sentences(sentence)) == 1
    assert sentences(f"Before this. {sentence}.")[0] == (0, len("Before this. "))


@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "\r\n \u2029\u3000"])
def test_nothing_and_white_space(text: str) -> None:
    assert sentences(text) == ([(0, len(text))] if text else [])


@pytest.mark.parametrize("largest", [0x7F, 0x3100, 0x10FFFF], ids=["ascii", "letters", "unicode"])
def test_random_text_is_covered_exactly_once(largest: int) -> None:
    chance = random.Random(largest)
    # Half of each text is of what cuts: marks, white space, quotes, joiners and combining characters.
    special = [
        *" .!?\"'([)]«»“”「」。…؟।;1-•A👩\n\r\t\0\x85\xa0\u0301\u200d\u2028\u2029\u3000",
        "\r\n",
        "Dr.",
    ]
    for _ in range(2000):
        codes = [code for code in chance.choices(range(largest), k=20) if not 0xD800 <= code < 0xE000]
        pieces = [*map(chr, codes), *chance.choices(special, k=20)]
        text = "".join(chance.sample(pieces, chance.randint(1, len(pieces))))
        spans = sentences(text)
        assert "".join(text[start:end] for start, end in spans) == text
        assert all(text[start:end].strip() for start, end in spans) or not text.strip()
        assert not any(text[start].isspace() for start, _ in spans[1:])


def test_lone_surrogates() -> None:
    assert sentences("A \ud800 one. Two.") == [(0, 9), (9, 13)]


def test_panic_of_sentencex_is_no_end() -> None:
    text = "A\u2028.\u0301 (B i. C"
    assert ends_by_rules("en", text) == set()
    assert sentences(text)[-1][1] == len(text)


def test_end_of_piece_is_no_end() -> None:
    words = "word " * PIECE_CHARACTERS
    assert len(sentences(words)) == len(sentences("今" * PIECE_CHARACTERS * 3)) == 1
    text = f"{words}end. Next one of Dr. Smith. " * 3
    assert [text[start:end][-6:] for start, end in sentences(text)] == [" end. ", "mith. "] * 3


@pytest.mark.parametrize("shift", range(0, 35, 2))
def test_pieces_begin_with_whole_words(shift: int) -> None:
    assert len(sentences(f"{'x' * shift} {'Prof. Dr. Smith met Mr. Brown and ' * 200}")) == 1


@pytest.mark.parametrize("shift", range(0, 110, 5))
def test_long_paragraph_is_cut_like_its_parts(shift: int) -> None:  # wherever its pieces begin
    part = "Dr. Smith (see Fig. 3. Now) ran at 5 p.m. today. He said: “Stop! Now.” and left. It is 3.85 now. "
    spans = sentences(f"{'x' * shift} {part * 100}")
    assert len(spans) == 100 * len(sentences(part))


MONOTONOUS = [
    *'a.!("「今。 \n\t\u2028\u2029',
    ". ",
    "A.",
    "A. ",
    "今。",
    "Dr. ",
    "1. ",
    "No. ",
    "!?",
    "「a。",
    "«a. ",
]


@pytest.mark.parametrize("unit", [*MONOTONOUS, "(A b.) ", "- x\n", "a\n\n", "a\u2029", "α;", "。\n"])
def test_monotonous_text_ends(unit: str) -> None:  # the timeout of every test is the assertion
    text = unit * 100_000
    assert sentences(text)[-1][1] == len(text)


def test_threads_agree() -> None:
    texts = ["".join(parts) for parts in TEXTS.values()] * 5
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(sentences, texts)) == list(map(sentences, texts))


def test_abbreviations_are_spelled_as_compared() -> None:
    words = " ".join(ABBREVIATION_LISTS.values())
    assert words == words.lower()
    assert not any(word.endswith(".") for word in words.split())
