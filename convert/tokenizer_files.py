"""A checkpoint's tokenizer: tokenizer.json, and what the files beside it lay over that, as transformers does.

Knows the tokenizers library and the names of settings, no model. Only what is said is followed: no defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from convert import vocabulary
from convert.checkpoint import read_json, read_optional_json, refuse_own_code
from convert.sentence_files import TOKENIZER_CONFIG
from service.errors import BakeError
from service.manifest import TOKENIZER_FILE

WORDS, ADDED_FILE, CLASS = "vocab.txt", "added_tokens.json", "tokenizer_class"
BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast")  # whose list of words says it all
PLAIN_CLASS = "PreTrainedTokenizerFast"  # to which the settings of letters are none
# Settings of BERT's normalizer, as tokenizer_config.json and as tokenizer.json spell them.
LETTERS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
SPACE = "add_prefix_space"
ADDED_FLAGS = ("lstrip", "rstrip", "normalized", "single_word")


def settings(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json, empty where there is none. Raises BakeError for what cannot be followed."""
    path = folder / TOKENIZER_CONFIG
    found = read_optional_json(path)
    refuse_own_code(path, found)
    if found.get("truncation_side", "right") != "right":
        raise BakeError(
            f"{path} has truncation_side {found['truncation_side']!r}: texts are cut at their end alone"
        )
    return found


def read(folder: Path, model_type: object) -> bytes | None:
    """Return the tokenizer, made of BERT's list of words where that is all there is; None where neither is.

    Raises BakeError for one that is broken or contradicts the files beside it.
    """
    path, words, given = folder / TOKENIZER_FILE, folder / WORDS, settings(folder)
    if path.is_file():
        return _overlaid(path.read_bytes(), folder, given)
    is_berts = model_type == "bert" and given.get(CLASS) in BERT_CLASSES
    if not words.is_file() or not is_berts:
        return None
    return _overlaid(vocabulary.of_word_pieces(words), folder, {"do_lower_case": True, **given})


def has_types(folder: Path) -> bool:
    """Tell whether the tokens of a second text get a type of their own."""
    names = settings(folder).get("model_input_names")
    return names is None or "token_type_ids" in names


def _overlaid(content: bytes, folder: Path, given: Mapping[str, Any]) -> bytes:
    tokenizer = vocabulary.opened(content)
    state = json.loads(tokenizer.to_str())  # with the vocabulary: megabytes
    normalizer, pre_tokenizer = state.get("normalizer") or {}, state.get("pre_tokenizer") or {}
    before = {**normalizer}, {**pre_tokenizer}
    if normalizer.get("type") == "BertNormalizer" and given.get(CLASS) != PLAIN_CLASS:
        normalizer |= {own: given[name] for name, own in LETTERS.items() if name in given}
    if SPACE in pre_tokenizer and isinstance(given.get(SPACE), bool):
        pre_tokenizer[SPACE] = given[SPACE]
    is_other = (normalizer, pre_tokenizer) != before
    if is_other:
        tokenizer = vocabulary.opened(json.dumps(state).encode())
    missing = [pair for pair in _added(folder, given) if not _has(tokenizer, *pair)]
    for token_id, token in sorted(missing, key=lambda pair: pair[0]):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if (found := tokenizer.token_to_id(token.content)) != token_id:
            raise BakeError(
                f"{folder} says that {token.content!r} has the id {token_id}, but in its tokenizer it has "
                f"{found}"
            )
    return str(tokenizer.to_str()).encode() if is_other or missing else content


def _has(tokenizer: Tokenizer, token_id: int, token: AddedToken) -> bool:
    known = tokenizer.get_added_tokens_decoder().get(token_id)
    return known is not None and known.content == token.content


def _added(folder: Path, given: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    """Read the tokens that are more than the vocabulary; of older files their ids alone."""
    decoder = given.get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        for token_id, entry in decoder.items():
            flags = {name: bool(entry[name]) for name in ADDED_FLAGS if name in entry}
            yield int(token_id), AddedToken(entry["content"], special=bool(entry.get("special")), **flags)
    elif (folder / ADDED_FILE).is_file():
        for content, token_id in read_json(folder / ADDED_FILE).items():
            yield int(token_id), AddedToken(content)
