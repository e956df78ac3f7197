"""What an embeddings request may ask of a model, checked against its manifest. Knows no token, no graph."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import InvalidRequest, LateChunkingUnsupported
from service.manifest import BASE_TASK, Manifest, Output, Task


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What a request asks of a model beside its inputs."""

    task: str | None = None
    prompt_name: str | None = None  # the side of a task, where a model's tasks have sides
    dimensions: int | None = None
    truncate: bool = False
    late_chunking: bool = False
    return_multivector: bool = False
    return_sparse: bool = False
    return_colbert: bool = False
    without_adapter: bool = False  # the base weights, where they were baked: for comparisons, not over HTTP

    @property
    def is_per_token(self) -> bool:
        """Tell whether the answer has a vector for every token."""
        return self.return_multivector or self.return_colbert


QUERY, PASSAGE = "query", "passage"
SIDES = (QUERY, PASSAGE)  # of a task whose texts have different prompts
OUTPUTS = {  # what a field asks for beside the vectors, or in their place
    "return_multivector": Output.MULTIVECTOR,
    "return_sparse": Output.SPARSE,
    "return_colbert": Output.COLBERT,
}
NAMES = {
    Output.MULTIVECTOR: "multi-vectors", Output.SPARSE: "sparse vectors", Output.COLBERT: "colbert vectors",
}  # fmt: skip


def check(manifest: Manifest, options: EmbedOptions) -> None:
    """Refuse what the model has no output for. Raises InvalidRequest."""
    if options.late_chunking and not manifest.late_chunking:
        raise LateChunkingUnsupported(manifest.late_chunking_refusal.format(model=manifest.name))
    for field, output in OUTPUTS.items():
        if getattr(options, field) and output not in manifest.outputs:
            raise InvalidRequest(
                f"Model {manifest.name} has no {NAMES[output]}; leave {field} out.",
                param=field,
                code="unsupported_option",
            )
    if options.return_multivector:
        _check_multivector(options)


def _check_multivector(options: EmbedOptions) -> None:
    """Refuse what contradicts a vector for every token."""
    for field, is_given in (
        ("dimensions", options.dimensions is not None),
        ("late_chunking", options.late_chunking),
    ):
        if is_given:
            raise InvalidRequest(
                f"'{field}' does not go with 'return_multivector': leave one of them out.",
                param=field,
                code="conflicting_fields",
            )


def task_of(manifest: Manifest, options: EmbedOptions) -> Task | None:
    """Return the task to run: the one asked for, else the model's default; None runs the graph of all tasks.

    Raises InvalidRequest for a task that the model does not have, never falls back to another.
    """
    if options.without_adapter:
        return Task(name=BASE_TASK)
    name = _task_name(manifest, options)
    by_name = {task.name: task for task in manifest.tasks}
    if name in by_name:
        return by_name[name]
    if name is None and manifest.serves_all_tasks and not manifest.has_prompt_names:
        return None  # the text as it is
    known = ", ".join(by_name)
    if name is None:
        message = f"Model {manifest.name} is served without its default task; name one of {known} in 'task'."
    elif by_name:
        message = f"Model {manifest.name} serves no task {name[:100]!r}; it serves {known}."
    else:
        message = f"Model {manifest.name} has no tasks; leave 'task' out."
    raise InvalidRequest(message, param="task", code="unknown_task")


def _task_name(manifest: Manifest, options: EmbedOptions) -> str | None:
    """Complete a task by its side: that of `prompt_name`, else the query's."""
    name, side = options.task, options.prompt_name
    if manifest.has_prompts and side is not None:
        return _prompt(manifest, name, side)
    if not manifest.has_prompt_names:
        return manifest.default_task if name is None else name
    if side is not None and side not in SIDES:
        raise InvalidRequest(
            f"'prompt_name' is {side[:100]!r}; use one of {', '.join(SIDES)}.",
            param="prompt_name",
            code="invalid_prompt_name",
        )
    if name is None:
        name = manifest.default_task
        if name is None or side is None:
            return name
        name = name.removesuffix(f".{QUERY}")
    completed = f"{name}.{side or QUERY}"
    if completed in manifest.task_names:
        return completed
    _, _, own_side = (name or "").rpartition(".")
    if side is not None and own_side in SIDES and own_side != side:
        raise InvalidRequest(
            f"'prompt_name' is {side!r} against 'task' {str(name)[:100]!r}; leave one of them out.",
            param="prompt_name",
            code="conflicting_fields",
        )
    return name


def _prompt(manifest: Manifest, task: str | None, prompt: str) -> str:
    """Return the task that is the prompt of this name. Raises InvalidRequest."""
    if prompt not in manifest.task_names:
        raise InvalidRequest(
            f"'prompt_name' is {prompt[:100]!r}; use one of {', '.join(manifest.task_names)}.",
            param="prompt_name",
            code="invalid_prompt_name",
        )
    if task not in (None, prompt):
        raise InvalidRequest(
            f"'prompt_name' is {prompt!r} against 'task' {str(task)[:100]!r}; leave one of them out.",
            param="prompt_name",
            code="conflicting_fields",
        )
    return prompt


def dimensions_of(manifest: Manifest, options: EmbedOptions) -> int:
    """Return the size of the answer's vectors. Raises InvalidRequest for one the model does not give."""
    size = manifest.dimensions
    wanted = manifest.default_dimensions if options.dimensions is None else options.dimensions
    if wanted != size and not (manifest.truncatable and 1 <= wanted <= size):
        allowed = (
            f"gives sizes from 1 to {size}" if manifest.truncatable else f"has only its own size, {size}"
        )
        raise InvalidRequest(
            f"'dimensions' is {wanted}; model {manifest.name} {allowed}.",
            param="dimensions",
            code="invalid_dimensions",
        )
    return wanted
