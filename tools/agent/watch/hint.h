// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "client/wire/messages.h"

namespace nearbox::agent {

enum HintFlags : std::uint32_t {
  kHintLook = 1,        // something is to be looked at: set in every hint
  kHintContent = 2,     // bytes changed: by `targets`, or by the name where there are none
  kHintBorn = 4,        // a node was made under this name: an inode number may have been used again
  kHintFresh = 8,       // if it is a directory, the clients know nothing of what is in it
  kHintAtOnce = 16,     // not to be held back: the other name of a rename is looked at with it
  kHintListing = 32,    // names came or went: the directory's own attributes changed as well
  kHintUnwatched = 64,  // a directory that nothing is told of: all below it may have changed
  kHintLinks = 128,     // the node itself, of no name: it has another number of them
  kHintArrived = 256,   // with kHintFresh: not only made, so that what was listed of it before says nothing
};

// A directory by the kernel's handle, as its source keys it; shared by the names that wait in it.
using HandleRef = std::shared_ptr<const std::string>;

// What the kernel said of a name, or with an empty name of a node itself. A reason to look, no more.
struct Hint {
  wire::NodeId dir;  // {0, 0} with an empty name: the node of `target`, whatever its name
  std::string_view name;
  std::uint32_t flags = kHintLook;
  std::string_view target;  // the kernel's handle of the node that changed, where it gave one
  HandleRef place;          // that of `dir`: the source may have forgotten it when the name is looked at
};

}  // namespace nearbox::agent
