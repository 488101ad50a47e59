// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "sync/scan/walk.h"

namespace nearbox::scan {

// Reports symlinks among `changes` that lead back to themselves. Nothing is followed on disk, where a link
// may lead out of the root: links are resolved among the paths the walk saw, and those that leave them are no
// loops.
void note_link_loops(Tree& tree, const std::vector<Change>& changes);

}  // namespace nearbox::scan
