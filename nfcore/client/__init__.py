# SPDX-License-Identifier: Apache-2.0
"""A typed client of the daemon's socket, for programs that give orders for flows."""

from .aio import AsyncBatch, AsyncFlowClient
from .client import Batch, FlowClient
from .errors import FlowError, NoDaemonError, NotAllowedError
from .flow import Flow, FlowStatus

__all__ = [
    "AsyncBatch",
    "AsyncFlowClient",
    "Batch",
    "Flow",
    "FlowClient",
    "FlowError",
    "FlowStatus",
    "NoDaemonError",
    "NotAllowedError",
]
