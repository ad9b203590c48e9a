"""The command line for people: look at versions, and decide what serves."""

from cltrain.cli import look, compare, decide, data, keep, advise  # noqa: F401, I001  (each adds its commands, in this order)
from cltrain.cli.options import app

__all__ = ["app", "main"]


def main() -> None:
    app()
