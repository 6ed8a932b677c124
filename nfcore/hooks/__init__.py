# SPDX-License-Identifier: Apache-2.0
"""How hooks are called: plugins found, loaded, called one by one, their results checked."""
