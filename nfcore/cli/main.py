# SPDX-License-Identifier: Apache-2.0
"""The command line. Exit status: 0 done; 1 the machine is not as needed; 2 the configuration or the call is wrong."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..api.findings import Finding, Status
from ..errors import NfcoreError
from ..logs import Format, Level, print_user, report_unexpected, set_up_logging
from ..refusals import TO_LOAD, missing_capabilities
from ..scaffold import Kind, make_skeleton, write_skeleton
from ..text import json_text
from ..version import __version__
from .daemon_commands import app as daemon_commands
from .options import JsonOption
from .plugin_commands import CommandGroup
from .stdio import prepare_streams
from .tables import TextTable, show

if TYPE_CHECKING:
    from ..api.config import Config
    from ..hooks.manager import PluginManager

app = typer.Typer(
    cls=CommandGroup,
    help="Network functions whose XDP fast path is driven by marks that the NIC sets in hardware.",
    epilog="Examples: nfcore check lb.toml; nfcore run lb.toml; nfcore stats lb.toml; nfcore COMMAND --help",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file.", readable=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as marking.strategy=flow-id. Repeatable."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nfcore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log more, with tracebacks of faults: --log-level debug.")
    ] = False,
    log_level: Annotated[
        Level, typer.Option("--log-level", envvar="NFCORE_LOG_LEVEL", help="The least severe level that is logged.")
    ] = Level.INFO,
    log_format: Annotated[
        Format, typer.Option("--log-format", envvar="NFCORE_LOG_FORMAT", help="json: one object per line.")
    ] = Format.TEXT,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Set up logging for every command."""
    set_up_logging(Level.DEBUG if verbose else log_level, log_format)


@app.command()
def run(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Run the network functions of CONFIG until SIGINT or SIGTERM.

    Prints a line with "ready" on standard error once it takes packets. When it stops, it detaches the program and
    removes the rules; the maps go too, unless the configuration pins them.

    With katran_accel.pin_dir the program is pinned there as balancer_ingress and the maps under their own names
    (vip_map, ch_rings, reals, lru_0, stats, hw_accel_stats, …), so that other tools can measure the deployed program.

    Examples:

      nfcore run /etc/nfcore.toml

      nfcore run examples/demo.toml --set marking.strategy=flow-id
    """
    from ..daemon.bootstrap import require_privileges
    from ..daemon.run import run as run_daemon

    loaded, plugins = _load(config, overrides)
    require_privileges("run")
    run_daemon(loaded, plugins, lambda message: print_user(logging.INFO, message))


@app.command()
def check(
    config: ConfigArgument,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print the resulting configuration as TOML.")] = False,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Check CONFIG without touching the machine.

    Names every mistake by its full key, with its value and what would be right, and exits with status 2. What is
    allowed and hardly meant, such as a VIP without reals, is a warning on standard error.

    Examples:

      nfcore check /etc/nfcore.toml

      nfcore check examples/demo.toml --resolved --set offload.min_packets=1
    """
    loaded, _ = _load(config, overrides)
    for remark in loaded.remarks:
        print_user(logging.WARNING, f"warning: {config}: {remark}")
    if as_json:
        print(json_text(loaded.resolved()))
    elif resolved:
        from ..config.reader import write_toml

        print(write_toml(loaded.resolved()), end="")
    else:
        print(f"{config}: no mistakes found")


@app.command()
def plugins(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="With --verbose: show the order of calls with this TOML.", readable=False
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also list each hook: where it runs, and its plugins in order.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the installed plugins with version, source and hooks.

    Examples:

      nfcore plugins --json

      nfcore plugins -v lb.toml
    """
    from ..hooks.manager import load_installed
    from .plugin_list import calling_order, installed

    loaded, plugins = _load(config, None) if config else (None, load_installed())
    rows = list(installed())
    hooks = list(calling_order(plugins, loaded)) if verbose else []
    if as_json:
        calls = {"hooks": [asdict(hook) for hook in hooks]} if verbose else {}
        print(json_text({"plugins": [asdict(row) for row in rows]} | calls))
        return
    table = TextTable("plugin", "version", "distribution", "source", "hooks")
    for row in rows:
        implemented = ", ".join(row.hooks) if row.error is None else f"cannot be loaded: {row.error}"
        table.add_row(row.name, row.version, row.distribution, row.source, implemented)
    show(table)
    for row in rows:
        for remark in row.remarks:
            print(remark)
    if verbose:
        table = TextTable("hook", "called on", "runs on", "order")
        for hook in hooks:
            table.add_row(hook.hook, hook.asked, hook.runs, "\n".join(hook.order) or "–")
        show(table)


@app.command()
def cleanup(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Remove what a killed daemon of CONFIG left.

    Removes programs, rules, pins and socket, and touches nothing that others made. Fails while the daemon runs.

    Example: nfcore cleanup /etc/nfcore.toml
    """
    from ..daemon.bootstrap import require_privileges
    from .cleanup import cleanup as clean

    loaded, plugins = _load(config, overrides)
    require_privileges("cleanup")
    lines = clean(loaded, plugins)
    if as_json:
        print(json_text({"removed": lines}))
    else:
        print("\n".join(lines) or "nothing was left")


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Also check what this TOML names.", readable=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find why nothing is forwarded, or would not be.

    Each line is ok, or has the cause and what to do. Checks kernel, headers and bcc; with CONFIG also its interfaces
    (XDP mode, MTU, LRO, checksums, losses, hw-tc-offload), what the offload backends can do, by trying it on the
    device, what the network functions need, such as the gateway's address, and all that nfcore run would refuse.
    Attaches an XDP program for a moment to an interface that has none. Exit status 1 when there is a fault.

    Examples:

      nfcore doctor

      nfcore doctor /etc/nfcore.toml --json
    """
    from .doctor import examine, examine_machine, survive

    findings: list[Finding] = []
    if config is None:
        findings += survive(examine_machine())
    else:
        loaded, plugins = _load(config, None)
        findings += survive(examine_machine())
        if not missing_capabilities(TO_LOAD):
            findings += survive(examine(loaded, plugins))
    faulty = any(finding.status is Status.FAULT for finding in findings)
    if as_json:
        print(json_text({"findings": [asdict(finding) for finding in findings]}))
    else:
        table = TextTable("", "what", "found", "what to do")
        for finding in findings:
            table.add_row(str(finding.status), finding.what, finding.found, finding.advice)
        show(table)
    raise typer.Exit(1 if faulty else 0)


@app.command()
def trace(
    config: ConfigArgument,
    frames: Annotated[
        list[str] | None, typer.Option("--hex", metavar="FRAME", help="A frame as hex. Repeatable.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file with one frame per line: hex, optionally mark=N.", readable=False)
    ] = None,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Show where packets go, and why, without attaching anything.

    Loads the configured programs with fresh maps and runs the frames through them in order, on one CPU. The first
    packet of a flow that is no SYN, FIN or RST reports it, and the flow gets a mark as in the daemon, but no rule: give
    mark=N to see what a marked packet does. dest-id marks count from 1 in the order of the TOML's VIPs and reals.

    With a chain of network functions there is a line for each function that sees the packet; the last one decides. A
    packet with a mark begins at the function that owns the mark, as in the daemon.

    Examples:

      nfcore trace examples/demo.toml --hex 020000000001…

      nfcore trace examples/demo.toml --file frames.txt --json
    """
    from ..daemon.bootstrap import require_privileges
    from .trace import parse_line, read_frames, trace_table
    from .trace import trace as run_trace

    loaded, plugins = _load(config, overrides)
    packets = [parse_line(text, f"--hex {number}") for number, text in enumerate(frames or (), 1)]
    packets += read_frames(file) if file else []
    if not packets:
        raise typer.BadParameter("give at least one frame, with --hex FRAME or --file FILE")
    require_privileges("trace")
    traced = run_trace(loaded, plugins, packets)
    if as_json:
        print(json_text({"packets": [packet.as_json() for packet in traced]}))
        return
    show(trace_table(packets, traced))


@app.command()
def bench(
    parts: Annotated[
        str,
        typer.Option(
            metavar="PART,…", help="What to measure: some of datapath, cores, live, control, rules, features."
        ),
    ] = "datapath,cores,live,control,rules",
    quick: Annotated[bool, typer.Option("--quick", help="Takes less than 3 minutes instead of 20.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only check that everything works; the results mean nothing.")
    ] = False,
    report: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the HTML page.", readable=False)] = Path(
        "nfcore-bench.html"
    ),
    nf: Annotated[
        str | None,
        typer.Option(metavar="PLUGIN", help="The network function; default: the first that can be measured."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what packets, flows and rules cost on this machine.

    Needs no configuration and no NIC, and touches no existing interface: it makes its own networks and daemons, and
    removes them at the end. Prints tables, and writes an HTML page with plots. Each result that the project promises
    stands beside its target; the exit status is 0 also when a target is not met. docs/benchmark.md has the method.

    Examples:

      nfcore bench --quick

      nfcore bench --parts datapath,cores --json --report /tmp/datapath.html

      nfcore bench --parts features
    """
    from ..bench.sizes import Sizes
    from ..daemon.bootstrap import require_privileges
    from .bench import read_parts, run_bench

    chosen = read_parts(parts)
    require_privileges("bench")
    sizes = Sizes.smoke() if smoke else Sizes.quick() if quick else Sizes()
    run_bench(chosen, sizes, nf, report, as_json=as_json)


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The plugin's name, such as acme_nic.")],
    kind: Annotated[Kind, typer.Option(help="An offload backend, a marking strategy, or a network function.")],
    into: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write it; default: ./nfcore-NAME.", readable=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a plugin that works, for you to change.

    The plugin is a distribution of its own and has a table in the TOML, its hooks, a README, an example TOML, and
    tests that pass: for a backend or a strategy the conformance suite of nfcore.testing. NAME is the plugin's name in
    nf.plugins and the name of its table.

    Examples:

      nfcore new-plugin acme_nic --kind backend

      nfcore new-plugin by_rack --kind strategy --into ~/src/nfcore-by-rack --json
    """
    skeleton = make_skeleton(name, kind, force=force)
    folder = into or Path(skeleton.distribution)
    written = write_skeleton(skeleton, folder, force=force)
    if as_json:
        row = {"name": skeleton.name, "kind": kind.value, "distribution": skeleton.distribution}
        row |= {"module": skeleton.module, "folder": str(folder.resolve())}
        print(json_text(row | {"files": [str(path.relative_to(folder.resolve())) for path in written]}))
        return
    for path in written:
        print(str(folder / path.relative_to(folder.resolve())))
    print(f"\nNext: cd {folder} && pip install -e '.[test]' && pytest && nfcore check example.toml")


app.registered_commands += daemon_commands.registered_commands


def _load(config: Path, overrides: list[str] | None) -> tuple[Config, PluginManager]:
    from ..config.loader import load_config
    from ..hooks.manager import PluginManager

    plugins = PluginManager()
    return load_config(config, plugins, overrides or ()), plugins


def main() -> None:
    """Run the command line; turn errors into a message and an exit status."""
    try:
        prepare_streams()
        try:
            app()
        finally:
            sys.stdout.flush()
    except NfcoreError as error:
        print_user(logging.ERROR, f"error: {error}")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        report_unexpected("nfcore", error)
        sys.exit(1)
