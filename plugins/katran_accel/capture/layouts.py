# SPDX-License-Identifier: Apache-2.0
"""The maps of bpf/balancer/capture.h and introspection.h as numpy dtypes, compared with the structs by a test."""

from __future__ import annotations

import numpy as np

from nfcore.kernel import MapSpec, MapType

SAMPLE_BYTES = 256
"""Bytes of a frame that fit into a sample."""
_SAMPLES_SIZE = 1 << 21
"""Size of the ring buffer in bytes: 6,800 samples."""
_EVENT_CPUS = 128

CAPTURE_FILTER = np.dtype(
    [
        ("until", "<u8"),
        ("reasons", "<u8"),
        ("verdicts", "<u4"),
        ("vip", "<u4"),
        ("real", "<u4"),
        ("every", "<u4"),
        ("bytes", "<u4"),
        ("pad", "<u4"),
    ]
)
CAPTURE_COUNTS = np.dtype([("fitting", "<u8"), ("lost", "<u8")])
CAPTURE_SAMPLE = np.dtype(
    [
        ("time", "<u8"),
        ("frame_bytes", "<u4"),
        ("arrived_bytes", "<u4"),
        ("ifindex", "<u4"),
        ("queue", "<u4"),
        ("vip", "<u4"),
        ("real", "<u4"),
        ("cpu", "<u2"),
        ("bytes", "<u2"),
        ("reason", "u1"),
        ("verdict", "u1"),
        ("pad", "<u2"),
        ("frame", "u1", (SAMPLE_BYTES,)),
    ]
)
EVENT_METADATA = np.dtype([("event", "<u4"), ("frame_bytes", "<u4"), ("bytes", "<u4")])
"""What a record of `event_pipe` begins with."""

_U32 = np.dtype("<u4")
CAPTURE_MAPS = (
    MapSpec("hw_accel_capture", MapType.ARRAY, _U32, CAPTURE_FILTER, 1),
    MapSpec("hw_accel_captured", MapType.PERCPU_ARRAY, _U32, CAPTURE_COUNTS, 1),
    MapSpec("hw_accel_samples", MapType.RINGBUF, None, None, _SAMPLES_SIZE),
)
EVENT_PIPE = MapSpec("event_pipe", MapType.PERF_EVENT_ARRAY, _U32, _U32, _EVENT_CPUS)
