"""flashmoe on many machines by Ray: batches of ``ray.data``, and a deployment of Ray Serve.

Needs the extra ``ray``: ``pip install "flashmoe[ray]"``. A machine runs one replica, for two would
share its SSD and its memory. It offers to do so by a resource of Ray's:
``ray start --address=HEAD:6379 --resources='{"flashmoe": 1}'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flashmoe.errors import ArgumentError
from flashmoe.generator import DEFAULT_MAX_TOKENS, Generator, Prompt
from flashmoe.model import Model
from flashmoe.reply import ReplyParser, starts_in_reasoning

if TYPE_CHECKING:
    import os

    from ray.data import Dataset
    from ray.serve import Application

    from flashmoe.sampler import Sampler
    from flashmoe.server import Settings

RESOURCE = "flashmoe"
"""What a machine offers that may run a replica."""


class Predictor:
    """Answers batches of rows: a callable class for ``ray.data.Dataset.map_batches``.

    The model is opened once, in the process that answers. :func:`predict` passes it to Ray with
    what keeps the order; it needs no Ray itself.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "prompt",
        output: str = "answer",
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        response_format: Mapping[str, Any] | None = None,
        template_options: Mapping[str, Any] | None = None,
        **model_options: Any,
    ) -> None:
        """Open the model.

        Args:
            model: A directory, at the same path on every machine, or a repository of the Hugging
                Face hub, which each machine downloads.
            column: Where the prompts are: texts, lists of token ids, or conversations, which are
                lists of messages with ``role`` and ``content``.
            output: Column for the answers.
            max_tokens: Longest answer.
            sampler: ``None`` takes the checkpoint's own settings.
            stop: Texts that end an answer.
            response_format: What each answer must follow; see :meth:`Generator.generate`.
            template_options: Variables of the chat template, such as ``enable_thinking``.
            **model_options: Of :class:`flashmoe.Model`: ``memory``, ``threads`` and the others.

        Raises:
            FlashMoEError: The model cannot be opened.
        """
        self._column, self._output = column, output
        self._options: dict[str, Any] = {
            "max_tokens": max_tokens,
            "stop": stop,
            "response_format": response_format,
        }
        self._template_options = dict(template_options or {})
        self._generator = Generator(Model(model, **model_options), sampler)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Answer the rows of a batch together; see :meth:`Generator.generate_batch`.

        Args:
            batch: Columns by name.

        Returns:
            The same rows, and columns with the answer, its ``reasoning`` (empty but for
            conversations), its ``finish_reason``, ``prompt_tokens`` and ``completion_tokens``.

        Raises:
            ArgumentError: There is no such column, or one of the new ones is there.
            FlashMoEError: As for :meth:`Generator.generate_batch`.
        """
        import numpy as np

        if self._column not in batch:
            raise ArgumentError(f"there is no column {self._column!r}, only {', '.join(batch)}")
        prompts = [self._prompt(value) for value in batch[self._column]]
        answers = self._generator.generate_batch([tokens for tokens, _ in prompts], **self._options)
        said = [
            _parts(answer.text, parser)
            for answer, (_, parser) in zip(answers, prompts, strict=True)
        ]
        new: dict[str, Any] = {
            self._output: np.array([content for content, _ in said], object),
            "reasoning": np.array([reasoning for _, reasoning in said], object),
            "finish_reason": np.array([answer.finish_reason for answer in answers], object),
            "prompt_tokens": np.array([a.stats.prompt_tokens for a in answers], np.int64),
            "completion_tokens": np.array([a.stats.completion_tokens for a in answers], np.int64),
        }
        if taken := new.keys() & batch.keys():
            raise ArgumentError(
                f"the rows have a column {', '.join(sorted(taken))} already; rename it, or choose "
                "another output"
            )
        return {**batch, **new}

    def _prompt(self, value: Any) -> tuple[Prompt, ReplyParser | None]:
        """What a row asks, and, of a conversation, what tells the parts of its answer."""
        if isinstance(value, str):
            return value, None
        if not (len(value) and isinstance(value[0], Mapping)):
            return [int(token) for token in value], None
        # A table has every field of its messages in each of them, None where there was none.
        messages = [{k: v for k, v in m.items() if v is not None} for m in value]
        prompt = self._generator.chat_prompt(messages, **self._template_options)
        thinks = starts_in_reasoning(prompt.text)
        if thinks and self._options["response_format"] is not None:
            raise ArgumentError(
                "the answers of this model begin with reasoning, which response_format would "
                'forbid; give template_options={"enable_thinking": False}'
            )
        return prompt.ids, ReplyParser(style=None, in_reasoning=thinks)


def _parts(text: str, parser: ReplyParser | None) -> tuple[str, str]:
    """Content and reasoning of an answer."""
    if parser is None:
        return text, ""
    parser.push(text)
    parser.finish()
    return parser.content, parser.reasoning


def predict(
    dataset: Dataset,
    model: str | os.PathLike[str],
    *,
    machines: int = 1,
    batch_size: int = 32,
    num_cpus: float = 0,
    **options: Any,
) -> Dataset:
    """Answer the rows of a dataset on several machines, and keep their order.

    Args:
        dataset: Told to keep the order of its blocks, here and in what is made of it.
        model: See :class:`Predictor`.
        machines: How many answer.
        batch_size: Rows that a machine answers together. More of them share the reading of
            experts, fewer spread a small dataset better.
        num_cpus: What Ray counts as taken on each machine. More than 0 keeps other work of
            Ray's away, but what reads the dataset needs some too, or nothing begins. The model
            takes as many threads as its option ``threads`` says, by default all.
        **options: Of :class:`Predictor`.

    Raises:
        ArgumentError: Fewer machines offer the resource ``flashmoe``. What goes wrong later is
            raised by Ray when the dataset is read, and tells the error of flashmoe.
    """
    import ray
    from ray.data import ActorPoolStrategy

    _check_machines(ray, machines)
    dataset.context.execution_options.preserve_order = True
    return dataset.map_batches(
        Predictor,
        fn_constructor_args=[model],
        fn_constructor_kwargs=options,
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=machines),
        num_cpus=num_cpus,
        resources={RESOURCE: 1},
        udf_modifying_row_count=False,
    )


def serve_app(
    model: str | os.PathLike[str],
    *,
    machines: int = 1,
    settings: Settings | None = None,
    num_cpus: float = 0,
    max_ongoing_requests: int = 64,
    **model_options: Any,
) -> Application:
    """The server of :func:`flashmoe.server.create_app` on several machines, for ``serve.run``.

    Each replica runs its requests together, lets more wait, and answers 503 beyond that. When it
    is stopped, it takes no more requests and what runs may end within ``settings.grace``.

    Args:
        model: A directory, at the same path on every machine, or a repository of the Hugging Face
            hub.
        machines: How many serve.
        settings: Limits of each replica; ``None``: the defaults, which answer to the names of
            this machine only. Behind another name give ``hosts`` and ``api_keys``.
        num_cpus: What Ray counts as taken on each machine.
        max_ongoing_requests: Requests that Ray gives to a replica at a time; the rest wait in
            Ray's proxy.
        **model_options: Of :class:`flashmoe.Model`: ``memory``, ``threads`` and the others.

    Raises:
        ArgumentError: Fewer machines offer the resource ``flashmoe``.
    """
    import ray
    from ray import serve

    from flashmoe.server import Settings, create_app

    _check_machines(ray, machines)
    limits = settings or Settings()

    def build() -> Any:
        return create_app(model, limits, **model_options)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="flashmoe",
        num_replicas=machines,
        ray_actor_options={"num_cpus": num_cpus, "resources": {RESOURCE: 1}},
        max_ongoing_requests=max_ongoing_requests,
        graceful_shutdown_timeout_s=limits.grace + 10,
    )
    return deployment.bind()


def _check_machines(ray: Any, machines: int) -> None:
    """Ray would wait for ever for machines that nobody has."""
    if machines < 1:
        raise ArgumentError(f"machines must be at least 1, not {machines}")
    if not ray.is_initialized():
        ray.init()
    offered = ray.cluster_resources().get(RESOURCE, 0)
    if offered < machines:
        raise ArgumentError(
            f"{machines} machines are asked for and {offered:g} offer to run a replica; start Ray "
            f"on each with: ray start --resources='{{\"{RESOURCE}\": 1}}'"
        )
