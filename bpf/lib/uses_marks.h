/* SPDX-License-Identifier: GPL-2.0-only */
/* USES_MARKS: 1 if the program is built for marks, which stand for flows (MARK_IS_FLOW) or targets (MARK_IS_TARGET). */
#pragma once

#if defined(MARK_IS_FLOW) || defined(MARK_IS_TARGET)
#define USES_MARKS 1
#else
#define USES_MARKS 0
#endif
