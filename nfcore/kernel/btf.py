# SPDX-License-Identifier: Apache-2.0
"""Offsets of struct members in the running kernel, read from its type information (BTF).

Format: the kernel's Documentation/bpf/btf.rst. Reads only what member offsets need: names, structs, unions.
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

# Kind → bytes that follow the 12 bytes of a type: (fixed, per element).
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
    """(name, type, offset in bits) of each member; the name is empty for an anonymous struct or union."""


class Btf:
    """The structs of a kernel, or of one module on top of the kernel `base`."""

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
            fixed, per_element = _TAILS[kind]
            if kind in (_STRUCT, _UNION):
                self._add_record(name_offset, raw, position + 12, count, bitfields=bool(info >> 31))
            self._next_type += 1
            position += 12 + fixed + per_element * count

    def _add_record(self, name_offset: int, raw: bytes, position: int, count: int, *, bitfields: bool) -> None:
        members = []
        for number in range(count):
            member_name, member_type, offset = _MEMBER.unpack_from(raw, position + 12 * number)
            # With bit fields, the upper byte is the member's width.
            members.append((self._name(member_name), member_type, offset & 0xFFFFFF if bitfields else offset))
        name = self._name(name_offset)
        self._records[self._next_type] = _Record(name, tuple(members))
        if name:
            self._by_name.setdefault(name, self._next_type)

    def _name(self, offset: int) -> str:
        if offset < self._first_string and self._base is not None:
            return self._base._name(offset)
        start = offset - self._first_string
        return self._strings[start : self._strings.index(b"\0", start)].decode()

    def member_offset(self, record: str, member: str) -> int:
        """Offset in bytes of a member, also one inside an anonymous struct; UnsupportedError when there is none."""
        type_id = self._by_name.get(record)
        bits = None if type_id is None else self._find(type_id, member)
        if bits is None and self._base is not None:
            return self._base.member_offset(record, member)
        if bits is None:
            raise UnsupportedError(f"struct {record}.{member}", "a kernel that has it, built with BTF")
        return bits // 8

    def _find(self, type_id: int, member: str) -> int | None:
        """Offset in bits of a member of a struct or union; None when there is none."""
        record = self._records.get(type_id)
        if record is None:
            return self._base._find(type_id, member) if self._base is not None else None
        for name, member_type, offset in record.members:
            if name == member:
                return offset
            inner = self._find(member_type, member) if not name else None
            if inner is not None:
                return offset + inner
        return None


@cache
def kernel_btf(module: str = "") -> Btf:
    """Read the type information of the running kernel, with that of a module (or built-in driver) if one is named."""
    try:
        base = Btf((BTF_FOLDER / "vmlinux").read_bytes())
        path = BTF_FOLDER / module
        return Btf(path.read_bytes(), base) if module and path.exists() else base
    except OSError:
        raise UnsupportedError("type information of the running kernel", f"{BTF_FOLDER}/vmlinux") from None
