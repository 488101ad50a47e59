// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "tools/agent/push_place.h"

namespace nearbox::agent {

// Makes the changes of one batch below one root, one after the other.
//
// Owns:    the descriptor of the directory that was used last.
// Threads: one at a time. What it makes belongs to the sandbox user from its first moment (BornAs).
// Errors:  in each result; one that fails keeps no other from being made.
class PushApplier {
 public:
  // Called for every path that changed: the node that is there now (`st`; nullptr: nothing), and whether it
  // is a directory that was made.
  using Tell = std::function<void(const std::string& path, const Stat* st, bool made)>;
  PushApplier(const Identity& who, RootPtr root, StageDirPtr stage, Tell tell)
      : who_(who), root_(std::move(root)), stage_(std::move(stage)), tell_(std::move(tell)) {}

  wire::PushResult apply(const wire::PushEntry& entry);

 private:
  using Outcome = base::Result<wire::PushResult>;
  Outcome dispatch(const wire::PushEntry& entry);
  Outcome put(const wire::PushEntry& entry);
  Outcome put_directory(const wire::PushEntry& entry);
  Outcome set_mode(const wire::PushEntry& entry);
  Outcome rename_file(const wire::PushEntry& entry);
  Outcome rename_tree(const wire::PushEntry& entry);
  Outcome remove(const wire::PushEntry& entry);
  Outcome remove_directory(const wire::PushEntry& entry);

  base::Result<Place> place_for(std::string_view path, bool make_parents);
  base::Result<void> make_parents(std::string_view directory);
  base::Result<std::string> fill(const wire::PushEntry& entry);
  base::Result<std::string> fill_file(const wire::PushEntry& entry);
  base::Result<std::string> fill_copy(const wire::PushEntry& entry);
  base::Result<std::string> check_staged(const wire::PushEntry& entry);
  base::Result<void> dress(const wire::PushEntry& entry, const Place& place, const Scratch& scratch,
                           const PushSight& sight);
  Outcome already(const wire::PushEntry& entry, const Place& place, const PushSight& sight);
  wire::PushResult done(const std::string& path, const Place& place, Placed placed);

  const Identity& who_;
  const RootPtr root_;
  const StageDirPtr stage_;
  const Tell tell_;
  std::string last_dir_;
  base::UniqueFd last_fd_;
};

}  // namespace nearbox::agent
