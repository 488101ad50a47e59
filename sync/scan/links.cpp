// SPDX-License-Identifier: Apache-2.0
#include "sync/scan/links.h"

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace nearbox::scan {
namespace {

using Targets = std::map<std::string, std::string_view, std::less<>>;

std::string_view parent_of(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}

// Whether resolving `path` takes more links than a kernel follows. Links whose target is not known (unchanged
// ones) count as directories: a loop needs a new link, but may lead over old ones, and is then found by the
// kernel.
bool loops(const Targets& targets, const std::string& path) {
  std::string rest = path;
  std::string at;
  for (int hops = 0; hops <= kMaxLinkHops;) {
    if (rest.empty()) return false;
    const auto slash = rest.find('/');
    const std::string name = rest.substr(0, slash);
    rest.erase(0, slash == std::string::npos ? rest.size() : slash + 1);
    if (name.empty() || name == ".") continue;
    if (name == "..") {
      if (at.empty()) return false;  // leaves the root
      at = parent_of(at);
      continue;
    }
    std::string next = at;
    if (!next.empty()) next += '/';
    next += name;
    const auto link = targets.find(next);
    if (link == targets.end()) {
      at = std::move(next);
      continue;
    }
    if (link->second.starts_with('/')) return false;
    ++hops;
    if (!rest.empty()) rest.insert(0, 1, '/');
    rest.insert(0, link->second);
    if (rest.size() > index::kMaxPathBytes) return true;
  }
  return true;
}

}  // namespace

void note_link_loops(Tree& tree, const std::vector<Change>& changes) {
  Targets targets;
  for (const auto& change : changes) {
    if (!change.target.empty()) targets.emplace(change.path, change.target);
  }
  for (const auto& [path, target] : targets) {
    if (loops(targets, path)) tree.report(ProblemKind::kSymlinkLoop, path);
  }
}

}  // namespace nearbox::scan
