// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <unistd.h>
#include <unordered_map>

#include "tools/agent/fs_path.h"
#include "tools/agent/watch/watcher.h"

// How the watcher tells its clients what it saw.
namespace nearbox::agent {
namespace {

constexpr std::size_t kStateCost = 160;                          // encoded, besides name and target
constexpr std::size_t kEventBudget = wire::kMaxEventBytes - 64;  // of a body

std::size_t cost_of(const wire::NameState& state) {
  return kStateCost + state.name.size() + state.target.size();
}

}  // namespace

void Watcher::tell(std::vector<Seen>& seen, const void* except) {
  if (seen.empty()) return;
  RootSet all;
  for (const auto& one : seen) all |= one.roots;
  std::vector<bool> overtaken(seen.size());
  {
    // Held from the first question to the last state: no operation is recorded in between.
    base::MutexLock lock(mu_);
    for (std::size_t index = 0; index < std::min(all.size(), roots_.size()); ++index) {
      if (!all.test(index)) continue;
      for (auto& to : roots_[index].subscriptions) {
        if (except == nullptr || to.owner != except) tell_locked(to, index, seen, overtaken);
      }
    }
  }
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (overtaken[i]) look_again(seen[i]);
  }
  seen.clear();
}

void Watcher::tell_locked(Subscription& to, std::size_t index, const std::vector<Seen>& seen,
                          std::vector<bool>& overtaken) {
  std::unordered_map<std::uint32_t, bool> listings;  // overtaken ones; true: their first is marked
  for (const auto& one : seen) {
    if (one.listing != 0 && done_.overtook(to.owner, one.state, one.as_of)) listings[one.listing] = false;
  }
  wire::Changed changed;
  changed.root = to.number;
  std::size_t bytes = 0;
  const auto flush = [&]() REQUIRES(mu_) {
    if (changed.states.empty()) return;
    (void)give_locked(to, wire::EventKind::kChanged, wire::encode(changed));
    changed.states.clear();
    bytes = 0;
  };
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const auto& one = seen[i];
    if (!one.roots.test(index)) continue;
    if (const auto it = listings.find(one.listing); it != listings.end()) {
      if (!std::exchange(it->second, true)) overtaken[i] = true;
      continue;
    }
    if (one.listing == 0 && done_.overtook(to.owner, one.state, one.as_of)) {
      overtaken[i] = true;
      continue;
    }
    if (one.listing == 0 && !one.named && put_off_locked(to.owner, one)) continue;
    const auto cost = cost_of(one.state);
    if (bytes + cost > kEventBudget || changed.states.size() >= wire::kMaxNameStates) flush();
    bytes += cost;
    changed.states.push_back(one.state);
  }
  flush();
}

// A client had an operation done that is not in what was seen.
void Watcher::look_again(const Seen& seen) {
  const auto& state = seen.state;
  TreeViews views(fanotify_.get(), inotify_.get());
  auto place = views.place_of(state.dir);
  const bool known = place || views.roots_of(state.dir).any();
  // A node without a name: the operation's own names are looked at once more (op_told()).
  if (!known && state.name.empty()) return;
  const auto flags = kHintLook | ((state.flags & wire::kNameFresh) != 0 ? kHintFresh | kHintArrived : 0U);
  if (!known || !names_.add({state.dir, state.name, flags, {}, std::move(place)}, Clock::now())) {
    overflowed_ = true;
    why_lost_ = "too many names";
  }
}

// False: the client is behind and is told nothing now.
bool Watcher::give_locked(Subscription& to, wire::EventKind kind, wire::Bytes body) {
  const auto room = to.log->room();
  if (to.behind && room < to.log->capacity() / 4 * 3) return false;
  if (to.behind) {
    to.behind = false;
    (void)to.log->append(wire::EventKind::kLost, wire::encode(wire::Lost{to.number, "", true, false, {}}));
  } else if (room < to.log->capacity() / 4) {
    to.behind = true;
    (void)to.log->append(wire::EventKind::kLost, wire::encode(wire::Lost{to.number, "", true, false, {}}));
    return false;
  }
  return to.log->append(kind, std::move(body)) != 0;
}

void Watcher::tell_lost(std::size_t index, const wire::Lost& lost) {
  auto body = lost;
  base::MutexLock lock(mu_);
  if (index >= roots_.size()) return;
  for (auto& to : roots_[index].subscriptions) {
    body.root = to.number;
    (void)give_locked(to, wire::EventKind::kLost, wire::encode(body));
  }
}

std::string Watcher::relative(const std::string& path, const std::string& directory) {
  const std::string start = directory == "/" ? directory : directory + "/";
  if (path.size() <= start.size() || path.compare(0, start.size(), start) != 0) return {};
  return path.substr(start.size());
}

namespace {

std::string path_now(const Root& root) {
  std::array<char, wire::kMaxPath> buffer{};
  const auto link = "/proc/self/fd/" + std::to_string(root.dir.get());
  const ssize_t n = ::readlink(link.c_str(), buffer.data(), buffer.size());
  if (n <= 0 || static_cast<std::size_t>(n) >= buffer.size()) return root.path;
  return {buffer.data(), static_cast<std::size_t>(n)};
}

}  // namespace

void Watcher::tell_lost_dirs(const std::vector<LostDir>& lost) {
  for (const auto& dir : lost) {
    for (std::size_t index = 0; index < dir.roots.size(); ++index) {
      if (!dir.roots.test(index)) continue;
      RootPtr root;
      {
        base::MutexLock lock(mu_);
        if (index < roots_.size()) root = roots_[index].root;
      }
      if (root) tell_lost(index, {0, relative(dir.path, path_now(*root)), dir.deep, dir.content, dir.node});
    }
  }
}

void Watcher::everything_lost(const char* why) {
  log_.warn(std::string("event=watch_lost why=\"") + why + "\"");
  lost_told_ = Clock::now();
  names_.clear();
  storms_.clear();
  if (inotify_) inotify_->rescan();
  incomplete_told_ = Clock::now();
  // Whatever is queued is covered by what the clients read from now on.
  versions_.bump_all();
  const auto used = used_roots();
  for (std::size_t index = 0; index < used.size(); ++index) {
    if (used.test(index)) tell_lost(index, {0, "", true, true, {}});
  }
}

// A root whose last name is gone.
void Watcher::check_roots() {
  std::vector<Seen> seen;
  const auto used = used_roots();
  for (std::size_t index = 0; index < used.size(); ++index) {
    if (!used.test(index)) continue;
    RootPtr root;
    {
      base::MutexLock lock(mu_);
      root = roots_[index].root;
    }
    auto st = stat_fd(root->dir.get());
    if (st && st->st_nlink > 0) continue;
    wire::NameState state;
    state.dir = root->node;
    Seen one{std::move(state), {}};
    one.roots.set(index);
    seen.push_back(std::move(one));
  }
  tell(seen);
}

}  // namespace nearbox::agent
