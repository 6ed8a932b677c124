# SPDX-License-Identifier: Apache-2.0
"""`python -m nfcore.cli`."""

from .main import main

main()
