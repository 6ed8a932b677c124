# SPDX-License-Identifier: Apache-2.0
"""The virtual machine: one command in Debian's kernel, with the host's files under a throwaway overlay.

::

    host's / ──read-only──► virtiofsd ──► root ──┐
    RUN/share ────────────► virtiofsd ──► share ─┤  QEMU: one CPU, 1 GB
    CACHE/guest/programs ─► virtiofsd ──► programs
    RUN/serial.log ◄──────── serial line, kernel ┤
    RUN/status ◄─────────── port "up", "exit N" ─┤
    output ◄──────────────── port, or terminal ──┘

The command sees the host's files as they are; what it writes stays in the guest's memory, but for
``/run/guest``, the share, and programs that it compiled: those are kept, since a compilation takes 20 s there.
Its environment is what it is given and nothing of the host's. An exit status
comes from process 1; a guest that stops without one has crashed, and its serial log tells why.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from nfcore.errors import HostError
from nfcore.kernel.headers import default_cache_dir

from .kernel import PREPARE, GuestKernel, build_init, cache_dir, cached_kernel

_QEMU = "qemu-system-x86_64"
_VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
_MEMORY = "1G"
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    # What a test under both kernels needs to know about this one.
    "NFCORE_GUEST": "1",
}
_BOOT_PATIENCE = 180.0
"""Seconds until process 1 must have said "up"; it takes 4 under TCG on an idle machine."""
_KVM_PATIENCE = 15.0
"""Seconds until a kernel under KVM must have panicked for want of a root; it takes one."""
_POLL = 0.02
_LOG_TAIL = 40
# 57-bit addresses cost the emulator a level of every page walk: a third of the guest's speed.
_TCG_CPU = "max,la57=off"


class GuestError(HostError):
    """The guest crashed, did not come up, or does not answer."""


@dataclass(frozen=True)
class Accelerator:
    """How QEMU runs the guest's instructions."""

    name: str
    cpu: str


TCG = Accelerator("tcg", _TCG_CPU)
KVM = Accelerator("kvm", "host")


def missing_for_guest() -> list[str]:
    """What this machine lacks to boot the guest, in words."""
    missing = [] if os.geteuid() == 0 else ["root"]
    if os.uname().machine != "x86_64":
        missing.append("an x86-64 machine")
    tools = [tool for tool in (_QEMU, "modprobe", "gcc") if shutil.which(tool, path=_ENVIRONMENT["PATH"]) is None]
    tools += [] if _VIRTIOFSD.exists() else ["virtiofsd"]
    if tools or cached_kernel() is None:
        missing.append(f"{' and '.join([*tools, 'a kernel'] if cached_kernel() is None else tools)} ({PREPARE})")
    return missing


class Guest:
    """One boot of the virtual machine, for one command. A context manager: leaving it stops the guest."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
        files: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> None:
        """Boot, and return when the command is about to start.

        ``output`` gets what the command prints (None: this process's own standard output); with
        ``terminal`` the command has this process's terminal instead. ``files`` are put into the share
        first: name → text. Raises HostError when something is missing, GuestError when it does not boot.
        """
        kernel = cached_kernel()
        missing = missing_for_guest()
        if kernel is None or missing:
            raise HostError(f"the guest needs {' and '.join(missing)}")
        self.kernel = kernel
        self.folder = Path(tempfile.mkdtemp(prefix="nfcore-guest-"))
        self.share = self.folder / "share"
        """The folder that is ``/run/guest`` inside."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._terminal = terminal
        self._output = output
        try:
            self.share.mkdir()
            for name, text in (files or {}).items():
                (self.share / name).write_text(text, encoding="utf-8")
            self._write_start(command, cwd, environment or {})
            self.accelerator = KVM if kvm_works(kernel) else TCG
            self._boot()
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """The command's exit status, None while it runs. Raises GuestError when the guest has crashed."""
        ended = self._qemu.poll() is not None
        words = self._status()
        if "exit" in words:
            return int(words[words.index("exit") + 1])
        if ended:
            raise GuestError(f"the guest stopped without an exit status:\n{self._last_words()}")
        return None

    def wait(self) -> int:
        """Wait for the command's exit status. Raises GuestError when the guest crashes."""
        while (status := self.poll()) is None:
            time.sleep(_POLL)
        return status

    def stop(self) -> None:
        """End the guest, if it has not, and remove its files."""
        for process in reversed(self._processes):
            # QEMU flushes what it has of the guest's output on a request to end, not on a kill.
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _write_start(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        exports = (shlex.quote(f"{name}={value}") for name, value in {**_ENVIRONMENT, **environment}.items())
        text = f"cd {shlex.quote(str(cwd))} && exec env -i {' '.join(exports)} {shlex.join(command)}\n"
        (self.share / "start").write_text(text, encoding="utf-8")

    def _boot(self) -> None:
        started = time.monotonic()
        try:
            self._start()
            self._await_up(started)
        except GuestError:
            if self.accelerator is not KVM:
                raise
            _remember_kvm(self.kernel, works=False)
            self._qemu.kill()
            self.accelerator = TCG
            self._start()
            self._await_up(time.monotonic())
        self.boot_seconds = time.monotonic() - started
        """From the first process to the command, in seconds of this machine."""

    def _start(self) -> None:
        for name in ("status", "serial.log"):
            (self.folder / name).unlink(missing_ok=True)
        # In a mount namespace of its own, where nothing of the host can be written through this mount.
        private = "mount --rbind / /mnt && mount -o remount,bind,ro /mnt && exec"
        self._serve_folder("root", ("unshare", "--mount", "--propagation", "private"), private, "/mnt", "always")
        self._serve_folder("share", (), "exec", str(self.share), "auto")
        self._serve_folder("programs", (), "exec", str(_compiled_programs()), "auto")
        self._qemu = self._launch("qemu", self._qemu_command(), stdin=None if self._terminal else subprocess.PIPE)

    def _serve_folder(self, tag: str, prefix: Sequence[str], shell: str, source: str, cache: str) -> None:
        path = self.folder / f"{tag}.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(1)
            daemon = [
                str(_VIRTIOFSD),
                f"--fd={listening.fileno()}",
                "-o",
                f"source={source},cache={cache},log_level=err",
            ]
            command = [*prefix, "sh", "-c", f"{shell} {shlex.join(daemon)}"]
            self._launch(tag, command, stdin=subprocess.DEVNULL, keep=listening.fileno())

    def _launch(
        self, name: str, command: Sequence[str], *, stdin: int | None, keep: int | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                # Not even a killed pytest leaves a guest behind.
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=stdin,
                stdout=self._output if name == "qemu" else log,
                stderr=log,
                pass_fds=() if keep is None else (keep,),
            )
        self._processes.append(process)
        return process

    def _qemu_command(self) -> list[str]:
        kernel, place = self.kernel, self.folder
        mode = "tty" if self._terminal else "pipe"
        append = (
            "console=ttyS0 quiet panic=-1 mitigations=off root=root rootfstype=virtiofs ro "
            f"init={build_init()} -- {kernel.overlay} {kernel.modules} {mode}"
        )
        device = "virtconsole" if self._terminal else "virtserialport"
        return [
            *_machine(kernel, self.accelerator, append),
            *("-object", f"memory-backend-memfd,id=memory,size={_MEMORY},share=on", "-m", _MEMORY),
            *("-machine", "memory-backend=memory"),
            *("-chardev", f"file,id=serial,path={place}/serial.log", "-serial", "chardev:serial"),
            # Without ioeventfd a write to a port is done when the guest's system call returns, so that
            # nothing is lost when it powers off.
            *("-device", "virtio-serial-pci,ioeventfd=off"),
            *("-chardev", f"file,id=status,path={place}/status"),
            *("-device", "virtserialport,chardev=status,nr=1"),
            *("-chardev", "stdio,id=output,signal=off"),
            *("-device", f"{device},chardev=output,nr={0 if self._terminal else 2}"),
            *self._filesystem("root"),
            *self._filesystem("share"),
            *self._filesystem("programs"),
        ]

    def _filesystem(self, tag: str) -> list[str]:
        return [
            *("-chardev", f"socket,id={tag},path={self.folder}/{tag}.sock"),
            *("-device", f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"),
        ]

    def _await_up(self, started: float) -> None:
        while "up" not in self._status():
            self.poll()
            if time.monotonic() - started > _BOOT_PATIENCE:
                raise GuestError(f"the guest did not come up within {_BOOT_PATIENCE:.0f} s:\n{self._last_words()}")
            time.sleep(_POLL)

    def _status(self) -> list[str]:
        """The words of process 1, complete lines only."""
        try:
            text = (self.folder / "status").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].split()

    def _last_words(self) -> str:
        """The ends of all logs that say something, the serial line's first."""
        tails = {name: _tail(self.folder / name) for name in ("serial.log", "qemu.log", "root.log")}
        return "\n".join(f"--- {name}\n{tail}" for name, tail in tails.items() if tail) or "its logs are empty"


def _compiled_programs() -> Path:
    """The guest's own folder of compiled programs, with those that the host has compiled added."""
    folder = cache_dir() / "programs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (default_cache_dir() / "programs").glob("[0-9a-f]*"):
        known = folder / path.name
        if not known.exists() or known.stat().st_mtime < path.stat().st_mtime:
            shutil.copy2(path, known)
    return folder


def kvm_works(kernel: GuestKernel) -> bool:
    """Whether KVM can run ``kernel`` here.

    /dev/kvm can be opened where nested virtualisation then fails at the first unusual instruction, so
    only a boot tells: without a root, a kernel that runs panics. The answer is kept until the next boot
    of the host.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        *key, answer = _kvm_note().read_text(encoding="utf-8").split()
        if key == _kvm_key(kernel):
            return answer == "works"
    except (OSError, ValueError):
        pass
    command = [*_machine(kernel, KVM, "console=ttyS0 panic=-1"), "-m", "256M", "-serial", "stdio"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_KVM_PATIENCE, check=False
        )
        works = b"Kernel panic" in done.stdout
    except subprocess.TimeoutExpired:
        works = False
    _remember_kvm(kernel, works=works)
    return works


def _remember_kvm(kernel: GuestKernel, *, works: bool) -> None:
    _kvm_note().write_text(" ".join([*_kvm_key(kernel), "works" if works else "fails"]), encoding="utf-8")


def _kvm_note() -> Path:
    return cache_dir() / "kvm"


def _kvm_key(kernel: GuestKernel) -> list[str]:
    return [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(), kernel.release]


def _machine(kernel: GuestKernel, accelerator: Accelerator, append: str) -> list[str]:
    return [
        *(_QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        # One CPU: QEMU's emulation loses its way when XDP programs are swapped under traffic on two.
        *("-machine", f"pc,accel={accelerator.name}", "-cpu", accelerator.cpu, "-smp", "1"),
        *("-kernel", str(kernel.image), "-append", append),
    ]


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-_LOG_TAIL:])
