// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "client/base/result.h"

namespace nearbox::agent {

// Marks on disk which commands were begun, so that a start that is sent again to a new agent process,
// because the old one died before it answered, never runs a command twice.
//
// Owns:    empty files DIR/PROC, one a command, until it is forgotten; leftovers of agents that died
//          go after a day.
// Threads: any.
class StartMarkers {
 public:
  // `dir` is made (0700) when it is missing; "" switches the marks off.
  explicit StartMarkers(std::string dir);
  // ESTALE: an agent that is gone had begun to start it. Other errors: the mark could not be made.
  base::Result<void> claim(std::uint64_t proc) const;
  void drop(std::uint64_t proc) const;

 private:
  std::string path(std::uint64_t proc) const;
  std::string dir_;
};

}  // namespace nearbox::agent
