# SPDX-License-Identifier: Apache-2.0
"""What must be so before `nfcore run` changes anything. `run` refuses by this list, `nfcore doctor` reports by it.

Privileges and the interfaces themselves come before it: without them nothing else can be looked at
(:func:`.bootstrap.require_privileges`, :func:`.bootstrap.find_devices`).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..api.carriers import Carrier, examine_carriers
from ..api.config import Config
from ..api.context import Context
from ..api.findings import Finding, Status, finding_of
from ..control.server import group_number, refuse_second
from ..errors import HostError
from ..hooks.manager import PluginManager
from ..kernel import XdpMode, check_bpffs
from ..refusals import explain
from .attachment import examine_program
from .bootstrap import CORE, state_path

log = logging.getLogger(__name__)
_NEW_FILES = 3
"""The socket, the state file, and its draft."""
_PAGE = 4096


def preconditions(context: Context, plugins: PluginManager) -> Iterator[Finding]:
    """Look at each of them, in the order in which a start needs them. Takes the locks of the run."""
    config = context.config
    yield finding_of("daemon", partial(refuse_second, Path(config.nf.socket)), "not running")
    yield finding_of("nf.socket: lock", partial(context.locks.path, Path(config.nf.socket), "socket"))
    modes = {interface.name: XdpMode(interface.xdp_mode) for interface in config.interfaces}
    for device in context.devices:
        # Whose the interface is comes first: the program on it is that of a daemon that has the lock.
        owned = finding_of(f"{device.name}: lock", partial(context.locks.interface, device.name, device.ifindex))
        yield owned
        if owned.status is Status.OK:
            yield examine_program(device, modes[device.name], context.state_file)
    yield from _groups(config)
    yield finding_of("nf.socket", partial(_try_socket, config), config.nf.socket)
    if any(len(interface.chain) > 1 for interface in config.interfaces):
        folder = config.nf.call_pins
        yield finding_of("chains", partial(check_bpffs, folder), f"can be pinned in {folder}")
    yield from examine_carriers(Carrier(config.marking.carrier), context.devices)
    for plugin in plugins.implementing("preconditions"):
        done, findings = plugins.try_call(plugin, "preconditions", context=context)
        if done:
            yield from findings or ()
        else:
            yield Finding(plugin, Status.FAULT, "its hook preconditions failed: see the log")


def require(findings: Iterable[Finding]) -> None:
    """Log the warnings among findings; HostError with all faults."""
    faults = []
    for finding in findings:
        # Most texts of faults are whole sentences, which name the thing.
        subject = "" if finding.what.partition(":")[0] in finding.found else finding.what
        about = ": ".join(filter(None, (subject, finding.found, finding.advice)))
        if finding.status is Status.FAULT:
            faults.append(about)
        elif finding.status is Status.WARNING:
            log.warning("%s", about)
    if faults:
        raise HostError("\n".join(faults))


def _groups(config: Config) -> Iterator[Finding]:
    for key in ("socket_group", "order_group"):
        if name := getattr(config.nf, key):
            yield finding_of(f"nf.{key}", partial(group_number, name, f"nf.{key}"), name)


def _try_socket(config: Config) -> None:
    """HostError when there could be no socket, or no state file beside it."""
    socket = Path(config.nf.socket)
    if os.path.lexists(socket) and not socket.is_socket():
        raise HostError(f"{socket} is there and is no socket: remove it, or choose another path")
    folder = socket.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        _try_files(folder)
    except OSError as error:
        what = f"{CORE} needs to write {socket.name} and {state_path(config).name} in {socket.parent}"
        raise HostError(f"{what}: {explain(error, folder)}") from None


def _try_files(folder: Path) -> None:
    """Make and fill files without a name, which leave nothing. OSError."""
    with ExitStack() as opened:
        for _ in range(_NEW_FILES):
            try:
                file = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                    raise
                if not os.access(folder, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder)) from None
                return  # this file system has none: the right to write must do
            opened.callback(os.close, file)
            os.write(file, bytes(_PAGE))
