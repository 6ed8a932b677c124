# SPDX-License-Identifier: Apache-2.0
"""Offsets of the running kernel's struct members, from the type information that it carries (BTF).

Format: the kernel's Documentation/bpf/btf.rst. Only what member offsets need is read: names, structs, unions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import UnsupportedError

BTF_FOLDER = Path("/sys/kernel/btf")
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_MAGIC = 0xEB9F
_STRUCT, _UNION = 4, 5

# Bytes that follow a type's 12, by kind; (fixed, per element).
_TAILS = {
    1: (4, 0),  # INT
    2: (0, 0),  # PTR
    3: (12, 0),  # ARRAY
    4: (0, 12),  # STRUCT
    5: (0, 12),  # UNION
    6: (0, 8),  # ENUM
    7: (0, 0),  # FWD
    8: (0, 0),  # TYPEDEF
    9: (0, 0),  # VOLATILE
    10: (0, 0),  # CONST
    11: (0, 0),  # RESTRICT
    12: (0, 0),  # FUNC
    13: (0, 8),  # FUNC_PROTO
    14: (4, 0),  # VAR
    15: (0, 12),  # DATASEC
    16: (0, 0),  # FLOAT
    17: (4, 0),  # DECL_TAG
    18: (0, 0),  # TYPE_TAG
    19: (0, 12),  # ENUM64
}


@dataclass(frozen=True)
class _Record:
    name: str
    members: tuple[tuple[str, int, int], ...]
    """Name, type, offset in bits."""


class Btf:
    """The structs of a kernel or of one module over it."""

    def __init__(self, raw: bytes, base: Btf | None = None) -> None:
        magic, _, _, header, type_offset, type_length, string_offset, string_length = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise UnsupportedError("reading the kernel's type information", "BTF in this machine's byte order")
        self._base = base
        self._first_string = base.string_end if base else 0
        strings = header + string_offset
        self._strings = raw[strings : strings + string_length]
        self.string_end: int = self._first_string + string_length
        self._next_type = base.type_end if base else 1
        self._records: dict[int, _Record] = {}
        self._by_name: dict[str, int] = {}
        self._read(raw[header + type_offset : header + type_offset + type_length])
        self.type_end: int = self._next_type

    def _read(self, raw: bytes) -> None:
        position = 0
        while position < len(raw):
            name_offset, info, _ = _TYPE.unpack_from(raw, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if kind not in _TAILS:
                raise UnsupportedError("reading the kernel's type information", f"a BTF kind up to 19, not {kind}")
            fixed, each = _TAILS[kind]
            if kind in (_STRUCT, _UNION):
                self._keep(name_offset, raw, position + 12, count, bitfields=bool(info >> 31))
            self._next_type += 1
            position += 12 + fixed + each * count

    def _keep(self, name_offset: int, raw: bytes, position: int, count: int, *, bitfields: bool) -> None:
        members = []
        for number in range(count):
            member, kind, offset = _MEMBER.unpack_from(raw, position + 12 * number)
            members.append((member, kind, offset & 0xFFFFFF if bitfields else offset))
        name = self._name(name_offset)
        self._records[self._next_type] = _Record(name, tuple((self._name(m), k, o) for m, k, o in members))
        if name:
            self._by_name.setdefault(name, self._next_type)

    def _name(self, offset: int) -> str:
        if offset < self._first_string and self._base is not None:
            return self._base._name(offset)
        start = offset - self._first_string
        return self._strings[start : self._strings.index(b"\0", start)].decode()

    def member_offset(self, record: str, member: str) -> int:
        """Offset in bytes of a member, also inside anonymous parts; UnsupportedError when there is none."""
        number = self._by_name.get(record)
        bits = None if number is None else self._find(number, member)
        if bits is None and self._base is not None:
            return self._base.member_offset(record, member)
        if bits is None:
            raise UnsupportedError(f"struct {record}.{member}", "a kernel that has it, built with BTF")
        return bits // 8

    def _find(self, number: int, member: str) -> int | None:
        record = self._records.get(number)
        if record is None:
            return self._base._find(number, member) if self._base is not None else None
        for name, kind, offset in record.members:
            if name == member:
                return offset
            inner = self._find(kind, member) if not name else None
            if inner is not None:
                return offset + inner
        return None


@cache
def kernel_btf(module: str = "") -> Btf:
    """Read the type information of the running kernel, or of a module (or built-in driver) over it."""
    try:
        base = Btf((BTF_FOLDER / "vmlinux").read_bytes())
        path = BTF_FOLDER / module
        return Btf(path.read_bytes(), base) if module and path.exists() else base
    except OSError:
        raise UnsupportedError("type information of the running kernel", f"{BTF_FOLDER}/vmlinux") from None
