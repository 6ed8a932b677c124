# SPDX-License-Identifier: Apache-2.0
"""``python -m demo``; see `demo.cli`."""

from __future__ import annotations

import typer

from .stop import StopSwitch


def start() -> None:
    """Run the command line."""
    # Before the imports: these take long enough for a Ctrl-C to come meanwhile.
    stop = StopSwitch()
    from .cli import main  # noqa: PLC0415

    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app(prog_name="demo.sh", obj=stop)


if __name__ == "__main__":
    start()
