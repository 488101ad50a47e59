// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/source.h"

namespace nearbox::agent {

void TreeViews::hidden() {
  if (inotify_ != nullptr) inotify_->hidden();
}

void TreeViews::recall(wire::NodeId dir, const HandleRef& place) {
  if (fanotify_ != nullptr) fanotify_->recall(dir, place);
}

HandleRef TreeViews::place_of(wire::NodeId dir) {
  return fanotify_ != nullptr ? fanotify_->place_of(dir) : HandleRef{};
}

base::UniqueFd TreeViews::open_dir(wire::NodeId dir) {
  auto fd = fanotify_ != nullptr ? fanotify_->open_dir(dir) : base::UniqueFd();
  return fd || inotify_ == nullptr ? std::move(fd) : inotify_->open_dir(dir);
}

RootSet TreeViews::roots_of(wire::NodeId dir) {
  RootSet found;
  if (fanotify_ != nullptr) found |= fanotify_->roots_of(dir);
  if (inotify_ != nullptr) found |= inotify_->roots_of(dir);
  return found;
}

std::optional<Stat> TreeViews::target(std::string_view handle) {
  return fanotify_ != nullptr ? fanotify_->target(handle) : std::nullopt;
}

bool TreeViews::names(std::string_view handle, wire::NodeId node) const {
  return fanotify_ != nullptr && fanotify_->names(handle, node);
}

void TreeViews::entered(int fd, wire::NodeId dir, wire::NodeId parent, std::string_view name) {
  if (fanotify_ != nullptr) fanotify_->entered(fd, dir, parent, name);
  // It would watch whatever it is shown.
  if (inotify_ != nullptr && inotify_->roots_of(parent).any()) inotify_->entered(fd, dir, parent, name);
}

}  // namespace nearbox::agent
