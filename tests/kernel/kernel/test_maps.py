# SPDX-License-Identifier: Apache-2.0
"""Every operation on real maps."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nfcore.errors import HostError
from nfcore.kernel import (
    Map,
    MapFlags,
    MapSpec,
    MapType,
    UpdateFlags,
    ensure_bpffs,
    obj_get,
    online_cpus,
    possible_cpus,
    remove_bpffs,
)
from tests.descriptors import open_files

U32, U64 = np.dtype(np.uint32), np.dtype(np.uint64)
FLOW = np.dtype([("address", np.uint8, (16,)), ("port", ">u2"), ("proto", np.uint8), ("pad", np.uint8)])
ODD_VALUE = np.dtype([("a", np.uint32), ("b", np.uint16), ("c", np.uint8)])
"""7 bytes, so that nothing is aligned by luck."""


@pytest.fixture
def create() -> Iterator[Callable[[MapSpec], Map]]:
    maps: list[Map] = []

    def make(spec: MapSpec) -> Map:
        maps.append(Map.create(spec))
        return maps[-1]

    yield make
    for map_ in maps:
        map_.close()


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpffs"
    assert ensure_bpffs(path)
    yield path
    assert os.system(f"umount {path}") == 0


def spec(kind: MapType, entries: int = 100, **changes: object) -> MapSpec:
    fields = {"name": "t", "type": kind, "key": U32, "value": ODD_VALUE, "max_entries": entries, **changes}
    return MapSpec(**fields)  # type: ignore[arg-type]


def flows(count: int) -> np.ndarray:
    keys = np.zeros(count, FLOW)
    keys["address"][:, 12:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    keys["port"] = np.arange(count) % 60000
    keys["proto"] = 6
    return keys


def odd_values(count: int) -> np.ndarray:
    values = np.zeros(count, ODD_VALUE)
    values["a"] = np.arange(count) * 7
    values["b"] = np.arange(count) % 65536
    values["c"] = np.arange(count) % 251
    return values


# -- specs ------------------------------------------------------------------------------------------


def test_spec_takes_scalar_types_and_no_dtype() -> None:
    loose = MapSpec("t", MapType.ARRAY, np.uint32, np.uint64, 1)  # type: ignore[arg-type]
    assert loose == MapSpec("t", MapType.ARRAY, U32, U64, 1)
    ring = MapSpec("r", MapType.RINGBUF, np.dtype([]), None, 4096)
    assert (ring.key_size, ring.value_size) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "no-dashes"}, "no-dashes"),
        ({"key": np.dtype((np.uint8, 16))}, "array dtype"),
        ({"inner": MapSpec("i", MapType.ARRAY, U32, U32, 1)}, "maps of maps"),
    ],
)
def test_impossible_specs_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(MapType.HASH, **changes)


# -- life -------------------------------------------------------------------------------------------


def test_name_is_cut_to_what_the_kernel_keeps(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, name="a_name_of_more_than_15"))
    assert made.spec.kernel_name == "a_name_of_more_"
    assert made.id > 0


def test_closed_map_says_so(create: Callable[[MapSpec], Map]) -> None:
    with create(spec(MapType.HASH)) as made:
        fd = made.fd
        os.fstat(fd)
    with pytest.raises(ValueError, match="map t is closed"):
        made.lookup(1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    made.close()


def test_refused_creation_names_the_map() -> None:
    with pytest.raises(HostError, match=r"cannot create map t \(RINGBUF.*Invalid argument"):
        Map.create(spec(MapType.RINGBUF, 1000, key=None, value=None))


def test_from_id_is_the_same_map(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, value=U64))
    with Map.from_id(made.id, made.spec) as other:
        other.update(5, 50)
        assert other.id == made.id
        assert made.lookup(5) == 50
    with pytest.raises(HostError, match=f"map with id {made.id} does not fit the map t: value size is 8, expected 4"):
        Map.from_id(made.id, spec(MapType.HASH, value=U32))
    with pytest.raises(HostError, match="id 2147483647"):
        Map.from_id(2147483647, made.spec)


# -- one element ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
def test_elements_of_hashes(create: Callable[[MapSpec], Map], kind: MapType) -> None:
    made = create(spec(kind, key=FLOW))
    key, value = flows(3)[2], odd_values(3)[2]
    assert made.lookup(key) is None
    made.update(key, value)
    found = made.lookup(key)
    assert isinstance(found, np.void)
    assert found == value
    assert made.lookup(key.tobytes()) == value
    assert made.delete(key)
    assert not made.delete(key)
    assert made.lookup(key) is None


def test_values_are_copies(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, value=U64))
    made.update(1, 10)
    before = made.lookup(1)
    made.update(1, 11)
    assert (before, made.lookup(1)) == (10, 11)


def test_tuples_and_bytes_are_values(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH))
    made.update(1, (100000, 2, 3))
    assert made.lookup(1).item() == (100000, 2, 3)
    made.update(1, b"\x05\0\0\0\x06\0\x07")
    assert made.lookup(1).item() == (5, 6, 7)


def test_update_flags(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, value=U32))
    with pytest.raises(HostError, match="No such file"):
        made.update(1, 1, UpdateFlags.EXIST)
    made.update(1, 1, UpdateFlags.NOEXIST)
    with pytest.raises(HostError, match="File exists"):
        made.update(1, 2, UpdateFlags.NOEXIST)
    assert made.lookup(1) == 1


def test_full_map_says_so(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, 2, value=U32))
    made.update(1, 1)
    made.update(2, 2)
    with pytest.raises(HostError, match="map t: it is full"):
        made.update(3, 3)


def test_wrong_data_is_refused_before_the_kernel_sees_it(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, key=FLOW))
    with pytest.raises(TypeError, match="key of t: 3 bytes given, elements have 20"):
        made.lookup(b"abc")
    with pytest.raises(TypeError, match="dtype"):
        made.update(flows(1)[0], np.zeros(1, [("x", np.uint8)])[0])
    with pytest.raises(TypeError, match=r"values of t: shape \(2,\) given, \(1,\) expected"):
        made.update(flows(1)[0], odd_values(2))


def test_queue_has_no_keys(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.QUEUE, key=None, value=U32))
    assert made.lookup(None) is None
    made.update(None, 7)
    made.update(None, 8)
    assert made.lookup(None) == 7


# -- per CPU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MapType.PERCPU_HASH, MapType.PERCPU_ARRAY])
def test_elements_per_cpu(create: Callable[[MapSpec], Map], kind: MapType) -> None:
    made = create(spec(kind))
    values = odd_values(possible_cpus())
    made.update(3, values)
    assert made.lookup(3).tolist() == values.tolist()
    made.update(3, (1, 2, 3))
    assert made.lookup(3).tolist() == [(1, 2, 3)] * possible_cpus()


@pytest.mark.parametrize("kind", [MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH])
def test_batches_per_cpu(create: Callable[[MapSpec], Map], kind: MapType) -> None:
    made = create(spec(kind, 1000, value=U32))
    keys = np.arange(300, dtype=np.uint32)
    values = np.arange(300 * possible_cpus(), dtype=np.uint32).reshape(300, possible_cpus())
    assert made.update_batch(keys, values).done == 300
    got_keys, got = made.lookup_all()
    assert got.shape == (300, possible_cpus())
    order = np.argsort(got_keys)
    assert np.array_equal(got[order], values)
    found, chosen = made.lookup_batch_keys([5, 999, 7])
    assert found.tolist() == [True, False, True]
    assert np.array_equal(chosen[[0, 2]], values[[5, 7]])
    assert made.delete_batch(keys[:299]).done == 299
    assert made.lookup_all()[0].tolist() == [299]


def test_slices_per_cpu(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.PERCPU_ARRAY, 70, value=U32))
    values = np.arange(20 * possible_cpus(), dtype=np.uint32).reshape(20, possible_cpus())
    made.write_array(50, values)
    assert np.array_equal(made.read_slice(50, 20), values)
    whole = made.read_array()
    assert whole.shape == (70, possible_cpus())
    assert not whole[:50].any()
    made.write_array(0, np.arange(70, dtype=np.uint32))
    assert np.array_equal(made.read_array(), np.repeat(np.arange(70)[:, None], possible_cpus(), 1))


# -- everything -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
@pytest.mark.parametrize("count", [0, 1, 150_000])
def test_lookup_all(create: Callable[[MapSpec], Map], kind: MapType, count: int) -> None:
    # An LRU map evicts before it is quite full.
    made = create(spec(kind, count * 2 + 10, key=FLOW))
    keys, values = flows(count), odd_values(count)
    result = made.update_batch(keys, values)
    assert (result.done, result.errno) == (count, 0)
    got_keys, got_values = made.lookup_all()
    assert got_keys.dtype == FLOW
    order = np.argsort(got_keys["address"][:, 12:].copy().view(">u4").ravel())
    assert np.array_equal(got_keys[order], keys)
    assert np.array_equal(got_values[order], values)


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
@pytest.mark.parametrize("count", [0, 1, 150_000])
def test_elements_of_a_chunk_may_be_deleted_before_the_next(
    create: Callable[[MapSpec], Map], kind: MapType, count: int
) -> None:
    made = create(spec(kind, count * 2 + 10, key=FLOW))
    keys, values = flows(count), odd_values(count)
    made.update_batch(keys, values)
    seen: list[tuple[int, int]] = []
    chunks = 0
    for got_keys, got_values in made.lookup_chunks():
        assert got_keys.dtype == FLOW
        numbers = got_keys["address"][:, 12:].copy().view(">u4").ravel()
        seen += zip(numbers.tolist(), got_values["a"].tolist(), strict=True)
        assert made.delete_batch(got_keys).done == len(got_keys)
        chunks += 1
    assert sorted(seen) == [(number, number * 7) for number in range(count)]
    assert (chunks > 2) == (count > 100_000)
    assert len(made.lookup_all()[0]) == 0


def test_an_array_is_one_chunk(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.ARRAY, 3, value=U32))
    made.write_array(0, [7, 8, 9])
    assert [(keys.tolist(), values.tolist()) for keys, values in made.lookup_chunks()] == [([0, 1, 2], [7, 8, 9])]


def test_lookup_all_of_a_small_hash_with_big_buckets(create: Callable[[MapSpec], Map]) -> None:
    for entries in (1, 2, 3, 5):
        made = create(spec(MapType.HASH, entries, value=U32))
        keys = np.arange(entries, dtype=np.uint32)
        made.update_batch(keys, keys)
        assert sorted(made.lookup_all()[0].tolist()) == list(range(entries))


PREFIX = np.dtype([("length", np.uint32), ("address", np.uint8, (4,))])


def prefixes(count: int) -> np.ndarray:
    keys = np.zeros(count, PREFIX)
    keys["length"] = 24
    keys["address"][:, 0] = 10
    keys["address"][:, 1] = np.arange(count) // 256
    keys["address"][:, 2] = np.arange(count) % 256
    return keys


@pytest.mark.parametrize("walk", [False, True])
def test_prefix_tree(create: Callable[[MapSpec], Map], walk: bool) -> None:
    made = create(spec(MapType.LPM_TRIE, 1000, key=PREFIX, value=U32, flags=MapFlags.NO_PREALLOC))
    keys = prefixes(600)
    assert made.update_batch(keys, np.arange(600, dtype=np.uint32)).done == 600
    host = np.array((32, (10, 1, 3, 77)), PREFIX)
    assert made.lookup(host) == 256 + 3
    # The walk is what kernels without batches for this type get.
    got_keys, got = made._elements(*made._walk()) if walk else made.lookup_all()
    assert sorted(got.tolist()) == list(range(600))
    assert np.array_equal(got_keys[np.argsort(got)], keys)
    assert made.delete_batch(keys[:100]).done == 100
    assert len(made.lookup_all()[0]) == 500


# -- arrays -----------------------------------------------------------------------------------------


def test_array_slices(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.ARRAY, 200_000))
    values = odd_values(200_000)
    made.write_array(0, values)
    assert np.array_equal(made.read_array(), values)
    assert np.array_equal(made.read_slice(0, 1), values[:1])
    assert np.array_equal(made.read_slice(199_999, 1), values[-1:])
    assert np.array_equal(made.read_slice(65_000, 70_000), values[65_000:135_000])
    assert len(made.read_slice(10, 0)) == 0
    made.write_array(199_998, odd_values(2))
    assert np.array_equal(made.read_slice(199_997, 3), np.r_[values[199_997:199_998], odd_values(2)])
    keys, everything = made.lookup_all()
    assert np.array_equal(keys, np.arange(200_000))
    assert np.array_equal(everything, made.read_array())


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 11), (10, 1), (5, -1)])
def test_slices_beyond_the_array(create: Callable[[MapSpec], Map], first: int, count: int) -> None:
    made = create(spec(MapType.ARRAY, 10, value=U32))
    with pytest.raises(IndexError, match="map t: it has 10"):
        made.read_slice(first, count)


def test_only_arrays_have_slices(create: Callable[[MapSpec], Map]) -> None:
    with pytest.raises(TypeError, match="map t is a HASH, not an array"):
        create(spec(MapType.HASH)).read_array()


def test_index_beyond_the_array(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.ARRAY, 10, value=U32))
    assert made.lookup(10) is None
    with pytest.raises(HostError, match="beyond its 10 entries"):
        made.update(10, 1)


def test_chosen_keys_of_an_array(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.ARRAY, 5000, value=U64))
    made.write_array(0, np.arange(5000, dtype=np.uint64) * 3)
    for keys in ([7, 5, 5, 9], [0, 4999], [3, 5000]):
        found, values = made.lookup_batch_keys(keys)
        assert found.tolist() == [key < 5000 for key in keys]
        assert values.tolist() == [key * 3 if key < 5000 else 0 for key in keys]


@pytest.mark.parametrize("value", [U32, U64, ODD_VALUE, FLOW], ids=["4", "8", "7", "20"])
def test_mapped_array_is_the_map(create: Callable[[MapSpec], Map], value: np.dtype) -> None:
    made = create(spec(MapType.ARRAY, 3000, value=value, flags=MapFlags.MMAPABLE))
    view = made.mmap()
    assert view.shape == (3000,)
    assert view.dtype == value
    values = np.frombuffer(np.random.default_rng(1).bytes(3000 * value.itemsize), value)
    made.write_array(0, values)
    assert view.tobytes() == values.tobytes()
    view[17] = values[2999]
    assert made.lookup(17).tobytes() == values[2999].tobytes()
    made.close()
    assert view[2999].tobytes() == values[2999].tobytes()


def test_only_mmapable_arrays_are_mapped(create: Callable[[MapSpec], Map]) -> None:
    with pytest.raises(TypeError, match=r"MapFlags\.MMAPABLE"):
        create(spec(MapType.ARRAY)).mmap()


# -- batches ----------------------------------------------------------------------------------------


def test_batch_stops_where_the_map_is_full(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, 64, value=U32, flags=MapFlags.NO_PREALLOC))
    keys = np.arange(200, dtype=np.uint32)
    result = made.update_batch(keys, keys)
    assert result.errno == errno.E2BIG
    assert result.done == len(made.lookup_all()[0])
    assert 64 <= result.done < 200
    assert made.lookup(int(keys[result.done - 1])) is not None
    assert made.lookup(int(keys[result.done])) is None


def test_batch_with_flags_stops_at_the_first_that_is_there(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, value=U32))
    made.update(5, 500)
    keys = np.arange(10, dtype=np.uint32)
    result = made.update_batch(keys, keys, UpdateFlags.NOEXIST)
    assert (result.done, result.errno) == (5, errno.EEXIST)
    assert made.lookup(5) == 500
    assert made.update_batch(keys[:5], keys[:5] + 1, UpdateFlags.EXIST).done == 5
    assert made.lookup(4) == 5


def test_missing_keys_do_not_stop_a_deletion(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, 100, value=U32))
    present = np.arange(0, 100, 3, dtype=np.uint32)
    made.update_batch(present, present)
    result = made.delete_batch(np.arange(100, dtype=np.uint32))
    assert (result.done, result.errno) == (len(present), 0)
    assert len(made.lookup_all()[0]) == 0
    assert made.delete_batch(present).done == 0


def test_arrays_refuse_deletion(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.ARRAY, value=U32))
    with pytest.raises(HostError, match="cannot delete key 1 of map t"):
        made.delete(1)
    result = made.delete_batch([1, 2])
    assert result.done == 0
    assert result.errno


def test_empty_batches(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, value=U32))
    nothing = np.zeros(0, np.uint32)
    assert made.update_batch(nothing, nothing).done == 0
    assert made.delete_batch(nothing).done == 0
    found, values = made.lookup_batch_keys(nothing)
    assert (len(found), len(values)) == (0, 0)


def test_one_value_for_many_keys(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH))
    assert made.update_batch(np.arange(10, dtype=np.uint32), (1, 2, 3)).done == 10
    assert made.lookup_all()[1].tolist() == [(1, 2, 3)] * 10


def test_too_few_values_are_refused(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, value=U32))
    with pytest.raises(TypeError, match=r"shape \(3,\) given, \(10,\) expected"):
        made.update_batch(np.arange(10, dtype=np.uint32), [1, 2, 3])


def test_slices_of_larger_arrays_are_batches_too(create: Callable[[MapSpec], Map]) -> None:
    made = create(spec(MapType.HASH, value=U64))
    table = np.zeros(20, [("key", np.uint32), ("value", np.uint64)])
    table["key"] = np.arange(20)
    table["value"] = np.arange(20) * 2
    assert made.update_batch(table["key"], table["value"]).done == 20
    assert made.lookup(19) == 38


# -- maps of maps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS])
def test_maps_of_maps(create: Callable[[MapSpec], Map], kind: MapType) -> None:
    inner = MapSpec("inner", MapType.LRU_HASH, FLOW, U32, 16)
    outer = create(spec(kind, 4, value=U32, inner=inner))
    first = create(inner)
    larger = create(MapSpec("inner", MapType.LRU_HASH, FLOW, U32, 64))
    outer.update(0, first)
    outer.update(1, larger.fd)
    assert outer.lookup(0) == first.id
    assert outer.lookup(1) == larger.id
    assert outer.lookup(2) is None
    with pytest.raises(HostError, match="cannot set key 2 of map t"):
        outer.update(2, create(MapSpec("inner", MapType.LRU_HASH, FLOW, U64, 16)))
    outer.update(0, larger)
    assert outer.lookup(0) == larger.id
    assert outer.delete(0)
    assert outer.lookup(0) is None
    with Map.from_id(int(outer.lookup(1)), larger.spec) as again:
        assert again.id == larger.id
    keys, ids = outer.lookup_all()
    assert dict(zip(keys.tolist(), ids.tolist(), strict=True)).get(1) == larger.id


# -- pins -------------------------------------------------------------------------------------------


def test_pin_outlives_the_map_object(create: Callable[[MapSpec], Map], pins: Path) -> None:
    made = create(spec(MapType.HASH, value=U64))
    made.update(1, 99)
    made.pin(pins / "t")
    made.close()
    with Map.open_pinned(pins / "t", made.spec) as again:
        assert again.lookup(1) == 99
        assert again.spec == made.spec


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": MapType.LRU_HASH}, "type is HASH, expected LRU_HASH"),
        ({"key": U64}, "key size is 4, expected 8"),
        ({"value": U32}, "value size is 7, expected 4"),
        ({"max_entries": 101}, "max_entries is 100, expected 101"),
        ({"flags": MapFlags.NO_PREALLOC}, "flags is 0x0, expected 0x1"),
    ],
)
def test_pin_of_another_map_is_refused(
    create: Callable[[MapSpec], Map], pins: Path, changes: dict[str, object], words: str
) -> None:
    create(spec(MapType.HASH)).pin(pins / "t")
    before = open_files()
    with pytest.raises(HostError, match=rf"the pin {pins}/t does not fit the map t: {words}"):
        Map.open_pinned(pins / "t", spec(MapType.HASH, **changes))  # type: ignore[arg-type]
    assert open_files() <= before


def test_device_map_fits_its_own_spec(create: Callable[[MapSpec], Map], pins: Path) -> None:
    # The kernel adds a flag of its own to these.
    made = create(spec(MapType.DEVMAP, value=U32))
    made.pin(pins / "t")
    with Map.open_pinned(pins / "t", made.spec) as again:
        assert again.id == made.id


def test_pin_troubles_are_named(create: Callable[[MapSpec], Map], pins: Path, tmp_path: Path) -> None:
    made = create(spec(MapType.HASH))
    made.pin(pins / "t")
    with pytest.raises(HostError, match=r"cannot pin at .*/t: something is pinned there already"):
        made.pin(pins / "t")
    with pytest.raises(HostError, match="no name with a dot"):
        made.pin(pins / "t.1")
    with pytest.raises(HostError, match="is not on a bpf file system"):
        made.pin(tmp_path / "t")
    with pytest.raises(HostError, match=r"cannot open the pin .*: no such file"):
        obj_get(pins / "nothing")


def test_file_system_is_mounted_once(pins: Path) -> None:
    assert not ensure_bpffs(pins)
    assert not ensure_bpffs(pins / "below")
    assert (pins / "below").is_dir()


def test_file_system_is_removed_when_empty(create: Callable[[MapSpec], Map], tmp_path: Path) -> None:
    path = tmp_path / "pins"
    remove_bpffs(path)
    assert ensure_bpffs(path)
    ensure_bpffs(path / "below")
    create(spec(MapType.HASH)).pin(path / "below" / "t")
    remove_bpffs(path / "below")
    remove_bpffs(path)
    assert (path / "below" / "t").exists()
    (path / "below" / "t").unlink()
    remove_bpffs(path / "below")
    assert not (path / "below").exists()
    remove_bpffs(path)
    assert not path.exists()


def test_file_system_where_there_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot create the directory"):
        ensure_bpffs(tmp_path / "file")


def test_cpus() -> None:
    assert 1 <= len(online_cpus()) <= possible_cpus()
    assert sorted(os.sched_getaffinity(0)) == sorted(set(online_cpus()) & os.sched_getaffinity(0))
