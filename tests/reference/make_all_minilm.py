"""Make convert/data/reference/all-minilm-l6-v2.json: vectors of sentence-transformers in float32.

Needs torch, sentence-transformers and a folder with sentence-transformers/all-MiniLM-L6-v2 in the layout of
Hugging Face. No test needs any of these: the tests only read the file. Command, from the repository root:

    HF_HUB_OFFLINE=1 python tests/reference/make_all_minilm.py CHECKPOINT_FOLDER
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

OUTPUT = Path(__file__).resolve().parents[2] / "convert" / "data" / "reference" / "all-minilm-l6-v2.json"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGES = ("sentence-transformers", "transformers", "torch", "tokenizers")
MAX_TOKENS = 256
# The limit and padding that are built into the checkpoint's tokenizer.json, which must not take effect.
BUILT_IN_LIMIT = 128
# More than 300 words, so that it is cut at 256 tokens.
LONG = (
    "The lighthouse keeper climbed the hundred and twelve steps every evening before sunset, carrying a "
    "can of oil in one hand and a folded newspaper in the other. He had done so for nineteen years, and "
    "in all that time he had missed only three evenings: one when his daughter was born, one when a storm "
    "tore the door from its hinges, and one that he never spoke about. At the top he would trim the wick, "
    "polish the brass, wind the clockwork that turned the lens, and then sit down on an upturned crate to "
    "read. The news was always two days old by the time the supply boat brought it, but that did not "
    "trouble him. Prices rose, ministers resigned, trains ran late somewhere far away, and none of it "
    "changed the tide. What mattered was the beam, sweeping over the reef every eleven seconds, and the "
    "dark shapes of the fishing boats that steered by it. On clear nights he counted them: fourteen in "
    "spring, more than thirty in the weeks when the herring came, and hardly any once the first ice had "
    "formed along the harbour wall. He wrote the numbers in a ledger, together with the direction of the "
    "wind, the height of the barometer, and the amount of oil burned. Nobody had ever asked to see the "
    "ledger. Then, one October morning, a young woman from the university stepped off the supply boat "
    "with a trunk full of instruments and asked whether he kept any records. He led her to a cupboard "
    "under the stairs and opened it. Inside stood nineteen volumes, bound in grey cloth, one for each "
    "year. She sat on the floor and began to read, and she did not stand up again until the lamp had to "
    "be lit. Years later, when her map of the changing currents was printed in every atlas, she insisted "
    "that his name should stand beside her own, although by then the light turned by electricity and no "
    "one climbed the stairs any more."
)
TEXTS = (
    "A man is playing a guitar on the street.",
    LONG,
    "quantization",
    "",
    "Wie viele Einwohner hat die größte Stadt am Oberrhein, und seit wann gibt es dort eine Straßenbahn?",
    "Crème BRÛLÉE à la carte, SEÑOR Núñez! ÅNGSTRÖM, İstanbul, Ελλάδα",
    "机器学习模型可以把句子变成向量\uff0c然后比较它们的相似度。",
    "Поиск по смыслу находит документы, в которых нет ни одного слова из запроса.",
    "هل يمكن البحث عن المعنى؟ हिन्दी में खोज करना आसान है। ภาษาไทยไม่มีช่องว่าง 日本語のカタカナと한국어",
    'def mean(values: list[float]) -> float:\n    """Return the mean."""\n    if not values:\n'
    "        raise ValueError('empty')\n    return sum(values) / len(values)  # O(n)",
    "Great news 🎉🚀 we shipped it 👩‍💻👍🏽 — see you tomorrow ☕️ :-)",
    "buffalo buffalo buffalo buffalo buffalo buffalo buffalo buffalo the the the the the the the the",
    "   leading,  multiple   and trailing    spaces   ",
    "3.14159, 1,234,567.89 €; (42 % off!?) #1 @home [x]_{i+1} = -0.5e-3 & more... 2024-02-29T23:59:60Z",
    "first line\nsecond line\r\n\tindented\tcolumns\u00a0no-break\u200bzero width",
    "antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis are long words",
)


def embed(model: SentenceTransformer, text: str, limit: int) -> torch.Tensor:
    """Return the normalised vector of one text that is cut at the given number of tokens."""
    model.max_seq_length = limit
    vector = model.encode(
        [text], batch_size=1, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
    )[0]
    if vector.dtype != torch.float32:
        raise SystemExit(f"the vector of {text[:40]!r} is in {vector.dtype}, not in float32")
    return vector


def check_limit(model: SentenceTransformer, text: str, num_tokens: int) -> None:
    """Stop unless the text is read without padding and up to 256 tokens."""
    model.max_seq_length = MAX_TOKENS
    used = tuple(model.preprocess([text])["input_ids"].shape)
    if used != (1, min(num_tokens, MAX_TOKENS)):
        raise SystemExit(f"{used} tokens of {text[:40]!r} were used, of {num_tokens}")
    if num_tokens > BUILT_IN_LIMIT:
        distance = (embed(model, text, MAX_TOKENS) - embed(model, text, BUILT_IN_LIMIT)).abs().max().item()
        print(f"{num_tokens} tokens: limits {MAX_TOKENS} and {BUILT_IN_LIMIT} differ by up to {distance:.4f}")
        if distance < 1e-3:
            raise SystemExit(f"the limit of {MAX_TOKENS} tokens had no effect on {text[:40]!r}")


def main() -> None:
    """Write the vectors of all texts with what is needed to check them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "checkpoint", type=Path, help="the folder that holds model.safetensors and tokenizer.json"
    )
    checkpoint = parser.parse_args().checkpoint
    torch.set_num_threads(1)
    model = SentenceTransformer(str(checkpoint), device="cpu", model_kwargs={"dtype": torch.float32})
    counter = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    counter.no_truncation()
    counter.no_padding()
    cases = []
    for text in TEXTS:
        num_tokens = len(counter.encode(text).ids)
        check_limit(model, text, num_tokens)
        vector = [float(f"{value:.8g}") for value in embed(model, text, MAX_TOKENS).tolist()]
        cases.append({"text": text, "num_tokens": num_tokens, "vector": vector})
    head = {
        "model": MODEL,
        "made_with": {name: version(name) for name in PACKAGES},
        "weights_sha256": hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest(),
        "max_tokens": MAX_TOKENS,
    }
    lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases]
    start = json.dumps(head, ensure_ascii=False, separators=(",", ":"))[:-1]
    content = start + ',"cases":[\n' + ",\n".join(lines) + "\n]}\n"
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
