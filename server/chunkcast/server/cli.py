"""``chunkcast-serve``: policy bundles over gRPC."""

from __future__ import annotations

import logging
import os
import sys

from chunkcast.server.config import ServeConfig
from chunkcast.server.errors import BadFlag, BundleError, ProviderMissing

EXTRAS = {"opentelemetry": "otel", "ray": "ray"}
"""What brings a package that is not among the server's own."""


def main() -> None:
    """Console script: exit code 0 after a drain, 2 on bad input."""
    # gRPC writes lines of its own, without a level or an address, as often as a stranger likes to connect.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import tyro

        config = tyro.cli(ServeConfig)
        _configure_log(config.log_format)
        _serve(config)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0], "server")
        print(f"error: {error.name} is not installed; run pip install 'chunkcast[{extra}]'", file=sys.stderr)
        raise SystemExit(2) from None
    except (BadFlag, BundleError, ProviderMissing, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _serve(config: ServeConfig) -> None:
    if config.ray:
        from chunkcast.server.on_ray.deploy import serve_on_ray

        serve_on_ray(config)
        return
    import asyncio

    from chunkcast.server.app import serve
    from chunkcast.server.memory import keep_memory_whole

    keep_memory_whole()
    asyncio.run(serve(config))


def _configure_log(log_format: str) -> None:
    import structlog

    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    # What libraries say stands in the same lines.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    # A client that is gone before it could be told something: gRPC would write a traceback, as often as anyone likes to
    # open streams and abandon them.
    logging.getLogger("grpc._cython.cygrpc").addFilter(
        lambda record: not record.getMessage().startswith("ExecuteBatchError")
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    main()
