// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/wire/attributes.h"
#include "client/wire/calls.h"
#include "client/wire/frames.h"
#include "client/wire/operations.h"
#include "client/wire/processes.h"

// The messages between nearbox and its agent. docs/protocol.md says when each is sent, what it
// means and how it is resumed; here are the shapes. Paths are bytes, relative to their root, without
// leading or trailing '/', "" is the root itself; each is checked by valid_path() (paths.h) by the
// side that receives it. Errors are Linux errno numbers (x86-64), 0 is success.
//
// `fields` templates take Ar = Writer with const M, or Reader with M.
