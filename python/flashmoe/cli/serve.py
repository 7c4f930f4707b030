"""``flashmoe serve``: a model behind the interfaces of OpenAI and Anthropic."""

from __future__ import annotations

import ipaddress
import signal
from pathlib import Path
from typing import Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import find_model, model_options, open_model

EPILOG = """\b
Examples:
  flashmoe serve --demo
  flashmoe serve ~/models/qwen3.6-35b-a3b-4bit --memory 6GB
  flashmoe serve MODEL --host 0.0.0.0 --api-key-file keys.txt

\b
Then, from any client of OpenAI's or Anthropic's interface:
  OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
  Anthropic(base_url="http://127.0.0.1:8080", api_key="none")
  or a browser: http://127.0.0.1:8080/
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
@click.option("--demo", is_flag=True, help="Serve the small model inside the package.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Keys that may ask, one a line. Without it, everybody who reaches the server may.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without a key.")
@click.option("--allow-host", multiple=True, help="Another name in the Host header to answer to.")
@click.option("--allow-origin", multiple=True, help="A web page's origin that may ask.")
@click.option("--name", help="What clients call the model; default: its directory's name.")
@click.option("--alias", multiple=True, help='Another name that requests may use; "*": any.')
@click.option("--queue", type=click.IntRange(min=1), default=32, show_default=True,
              help="Requests that may wait; more get 503.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), help="Requests that run together.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=4096, show_default=True,
              help="Longest answer where a request does not say.")  # fmt: skip
@click.option("--request-timeout", type=float, default=3600.0, show_default=True,
              help="Seconds from a request to the end of its answer.")  # fmt: skip
@click.option("--prefix-memory", default="512MB", show_default=True,
              help="For conversations to go on with, beside --memory; 0: none.")  # fmt: skip
@click.option("--prefix-directory", type=click.Path(file_okay=False),
              help="Keep them there as well, for the next start.")  # fmt: skip
@click.option("--prefix-disk", default="4GB", show_default=True, help="Most of it.")
@model_options
def command(
    model: str | None,
    demo: bool,
    host: str,
    port: int,
    api_key_file: Path | None,
    insecure: bool,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    name: str | None,
    alias: tuple[str, ...],
    queue: int,
    batch_size: int | None,
    max_tokens: int,
    request_timeout: float,
    prefix_memory: str,
    prefix_directory: str | None,
    prefix_disk: str,
    **options: Any,
) -> None:
    """Serve a model over HTTP: /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages.

    A web chat page is at /, health at /health, Prometheus metrics at /metrics.
    """
    if demo == (model is not None):
        raise click.UsageError("give a MODEL, or --demo for the one inside the package")
    from flashmoe.machine import parse_size

    keys = _read_keys(api_key_file)
    outside = not _is_loopback(host)
    if outside and not keys and not insecure:
        raise click.UsageError(
            f"{host} can be reached from other machines: give --api-key-file, or --insecure if "
            "everybody there may use the model"
        )
    try:
        import uvicorn

        from flashmoe.server.app import create_app
        from flashmoe.server.connections import uvicorn_config
        from flashmoe.server.settings import LOOPBACK, Settings
    except ImportError as error:
        raise click.ClickException(
            f'the server needs {error.name}: pip install "flashmoe[server]"'
        ) from error
    hosts = None if outside and not allow_host else (*LOOPBACK, host, *allow_host)
    settings = Settings(
        name=name or ("flashmoe-demo" if demo else None),
        aliases=alias,
        api_keys=keys,
        hosts=hosts,
        origins=allow_origin,
        queue=queue,
        batch_size=batch_size,
        max_tokens=max_tokens,
        request_timeout=request_timeout,
        prefix_memory=0 if prefix_memory in ("0", "0B") else parse_size(prefix_memory),
        prefix_directory=prefix_directory,
        prefix_disk=parse_size(prefix_disk) if prefix_directory else 0,
    )
    with open_model("demo" if demo else str(find_model(str(model))), options) as opened:
        app = create_app(opened, settings)
        config = uvicorn_config(app, settings, host=host, port=port)
        server = uvicorn.Server(config)
        # uvicorn has a handler of its own while it runs, and then sends the signal to this one
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        socket = config.bind_socket()
        bound = socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        show.note(f"{app.state.service.name} at http://{shown}:{bound}  (Ctrl-C stops)")
        server.run(sockets=[socket])


def _read_keys(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    keys = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if not keys:
        raise click.UsageError(f"{file} has no key")
    return keys


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
