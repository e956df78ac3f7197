"""The recipes of models that take text and images. Data only."""

from __future__ import annotations

from convert.recipe import Architecture, Recipe
from service.manifest import Kind, Manifest, Output, Pooling, Source, Task
from service.vision import Vision

QUERY, PASSAGE = "Query: ", "Passage: "

JINA_EMBEDDINGS_V4 = Recipe(
    manifest=Manifest(
        name="jina-embeddings-v4",
        kind=Kind.EMBEDDING,
        pooling=Pooling.MEAN,
        outputs=(Output.POOLED, Output.TOKEN_EMBEDDINGS, Output.MULTIVECTOR),
        licence="Qwen Research License (elsewhere stated as CC-BY-NC-4.0)",  # both by its authors
        owned_by="jinaai",
        source=Source(id="jinaai/jina-embeddings-v4", revision="853c867b65b749f3c3c72a06868140d842e04f06"),
        max_tokens=8192,
        truncatable=True,
        tasks=(
            Task(name="retrieval.query", graph="retrieval", prefix=QUERY),
            Task(name="retrieval.passage", graph="retrieval", prefix=PASSAGE),
            Task(name="text-matching", prefix=QUERY),  # for passages too
            Task(name="code.query", graph="code", prefix=QUERY),
            Task(name="code.passage", graph="code", prefix=PASSAGE),
        ),
        default_task="text-matching",
        has_prompt_names=True,
        late_chunking=True,
        vision=Vision(
            prompt=(
                "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n"
            ),
            image_token="<|image_pad|>",
            pooled_from="<|vision_start|>",
            pooled_to="<|vision_end|>",
            min_pixels=3136,
            max_pixels=602_112,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
    ),
    architecture=Architecture.QWEN2_5_VL,
    num_parameters=3_934_695_552,
    has_adapters=True,
)
