// SPDX-License-Identifier: Apache-2.0
#include "fs/core/prefetch.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <list>
#include <sys/stat.h>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/base/mutex.h"

namespace nearbox::fs {

using base::MutexLock;
using sync::kNoNode;
using sync::NodeIndex;

namespace {

constexpr int kHitsBeforeDirectories = 2;  // a reader is believed to follow the listing's order after these

constexpr std::uint64_t kNothing = ~0ULL;

struct Walk {
  std::uint64_t number = 0;
  NodeIndex dir = kNoNode;   // where the guesses go on …
  std::uint64_t cookie = 0;  // … after this entry
  int hits = 0;
  std::uint64_t window = 0;
  std::uint64_t ahead = 0;  // bytes guessed and not yet read
  std::uint64_t passed =
      kNothing;       // the entry before the first directory that was passed by; kNothing: none was
  bool over = false;  // nothing follows
};

}  // namespace

struct Prefetcher::Impl : std::enable_shared_from_this<Impl> {
  Impl(sync::TreeStore& t, BlockCache& c, api::AgentLink& l, const PrefetchOptions& o)
      : tree(t), cache(c), link(l), options(o), max_window(o.least_window), credit(o.start_bytes) {}

  using Walks = std::list<Walk>;
  struct Ahead {
    wire::NodeId id;
    std::uint64_t walk = 0;
    std::uint64_t size = 0;
    std::list<NodeIndex>::iterator age;
  };
  using Batch = std::vector<BlockCache::Wanted>;

  void on_read(const std::shared_ptr<Impl>& self, NodeIndex node, const wire::Attr& attr) EXCLUDES(mu);
  void batch_ended(const std::shared_ptr<Impl>& self, std::uint64_t walk) EXCLUDES(mu);
  static void believe(Walk& walk);
  Walk* hit_locked(NodeIndex node, const wire::Attr& attr) REQUIRES(mu);
  Walk* skipped_to_locked(NodeIndex dir, std::uint64_t cookie) REQUIRES(mu);
  Walk& begin_locked() REQUIRES(mu);
  Walk* find_locked(std::uint64_t number) REQUIRES(mu);
  std::vector<Batch> guess_locked(const sync::Mirror& mirror, Walk& walk) REQUIRES(mu);
  bool step_locked(const sync::Mirror& mirror, Walk& walk, std::size_t& steps, Batch& out, std::uint64_t room)
      REQUIRES(mu);
  bool climb(const sync::Mirror& mirror, Walk& walk, std::size_t& steps) const;
  void remember_locked(Walk& walk, NodeIndex node, const wire::Attr& attr) REQUIRES(mu);
  void forget_locked(NodeIndex node) REQUIRES(mu);
  void send(const std::shared_ptr<Impl>& self, std::uint64_t walk, const std::vector<Batch>& batches)
      EXCLUDES(mu);

  sync::TreeStore& tree;
  BlockCache& cache;
  api::AgentLink& link;
  const PrefetchOptions options;
  std::atomic<std::uint64_t> max_window;

  mutable base::Mutex mu;      // rank: below the tree's lock, which may be held around it
  Walks walks GUARDED_BY(mu);  // last used first
  std::unordered_map<NodeIndex, Ahead> ahead GUARDED_BY(mu);
  std::list<NodeIndex> ages GUARDED_BY(mu);  // of `ahead`, oldest first
  std::uint64_t next_walk GUARDED_BY(mu) = 1;
  std::uint64_t credit GUARDED_BY(mu);  // bytes that may be guessed
  PrefetchStats counts GUARDED_BY(mu);
};

Walk* Prefetcher::Impl::find_locked(std::uint64_t number) {
  const auto it = std::find_if(walks.begin(), walks.end(), [&](const Walk& w) { return w.number == number; });
  if (it == walks.end()) return nullptr;
  walks.splice(walks.begin(), walks, it);
  return &walks.front();
}

void Prefetcher::Impl::forget_locked(NodeIndex node) {
  const auto it = ahead.find(node);
  if (it == ahead.end()) return;
  for (auto& walk : walks) {
    if (walk.number == it->second.walk) walk.ahead -= std::min(walk.ahead, it->second.size);
  }
  ages.erase(it->second.age);
  ahead.erase(it);
}

// One guess more was right. A reader who seems to follow the listing gets the directories too that were
// passed by before.
void Prefetcher::Impl::believe(Walk& walk) {
  if (++walk.hits != kHitsBeforeDirectories) return;
  walk.over = false;
  if (walk.passed != kNothing) walk.cookie = std::exchange(walk.passed, kNothing);
}

// The walk that had guessed this file.
Walk* Prefetcher::Impl::hit_locked(NodeIndex node, const wire::Attr& attr) {
  const auto it = ahead.find(node);
  if (it == ahead.end()) return nullptr;
  const auto guess = it->second;
  forget_locked(node);
  if (!wire::same_node(guess.id, wire::identity(attr))) return nullptr;
  counts.used_bytes += guess.size;
  auto* const walk = find_locked(guess.walk);
  if (walk == nullptr) return nullptr;
  believe(*walk);
  walk->window = std::min(walk->window + 2 * guess.size + options.batch_bytes / 8, max_window.load());
  return walk;
}

// The walk that has just this directory before it: something was left out there, being large.
Walk* Prefetcher::Impl::skipped_to_locked(NodeIndex dir, std::uint64_t cookie) {
  const auto it = std::find_if(walks.begin(), walks.end(),
                               [&](const Walk& w) { return w.dir == dir && w.cookie < cookie; });
  if (it == walks.end()) return nullptr;
  auto* const walk = find_locked(it->number);
  believe(*walk);
  return walk;
}

Walk& Prefetcher::Impl::begin_locked() {
  if (walks.size() >= options.max_walks) walks.pop_back();
  auto& walk = walks.emplace_front();
  walk.number = next_walk++;
  walk.window = options.first_window;
  return walk;
}

void Prefetcher::Impl::on_read(const std::shared_ptr<Impl>& self, NodeIndex node, const wire::Attr& attr) {
  std::vector<Batch> batches;
  std::uint64_t number = 0;
  tree.read([&](const sync::Mirror& mirror) {
    MutexLock lock(mu);
    counts.read_bytes += attr.size;
    credit = std::min(credit + 2 * attr.size, options.max_credit);
    auto* walk = hit_locked(node, attr);
    if (walk == nullptr) {
      ++counts.unforeseen;
      // Not foreseen: a reader of whom nothing is known, at this name.
      NodeIndex dir = kNoNode;
      mirror.names(node, [&](NodeIndex parent, std::string_view) {
        if (dir == kNoNode) dir = parent;
      });
      if (dir == kNoNode) return;
      const auto cookie = mirror.cookie(dir, node);
      walk = skipped_to_locked(dir, cookie);
      if (walk == nullptr) walk = &begin_locked();
      walk->dir = dir;
      walk->cookie = cookie;
    }
    number = walk->number;
    batches = guess_locked(mirror, *walk);
  });
  send(self, number, batches);
}

// What to fetch next for this reader, as far as window and credit allow.
std::vector<Prefetcher::Impl::Batch> Prefetcher::Impl::guess_locked(const sync::Mirror& mirror, Walk& walk) {
  std::vector<Batch> batches;
  if (walk.over || walk.ahead > walk.window / 2) return batches;
  std::size_t steps = options.max_steps;
  while (!walk.over && walk.ahead < walk.window && credit > 0 && steps > 0 &&
         counts.batches < options.max_batches) {
    Batch batch;
    const auto room = std::min({walk.window - walk.ahead, credit, options.batch_bytes});
    const auto before = walk.ahead;
    while (batch.size() < options.batch_files && walk.ahead - before < room && steps > 0) {
      if (!step_locked(mirror, walk, steps, batch, room - (walk.ahead - before))) break;
    }
    if (batch.empty()) break;
    ++counts.batches;
    batches.push_back(std::move(batch));
  }
  return batches;
}

// One entry further in the order of the listing; false when nothing follows or fits.
bool Prefetcher::Impl::step_locked(const sync::Mirror& mirror, Walk& walk, std::size_t& steps, Batch& out,
                                   std::uint64_t room) {
  NodeIndex next = kNoNode;
  std::uint64_t cookie = 0;
  if (mirror.listing(walk.dir) == sync::Listing::kComplete) {
    mirror.list(walk.dir, walk.cookie, [&](std::uint64_t at, std::string_view, NodeIndex node) {
      next = node;
      cookie = at;
      return false;
    });
  }
  --steps;
  if (next == kNoNode) {
    walk.over = !climb(mirror, walk, steps);
    return !walk.over;
  }
  const auto attr = mirror.attr(next);
  if (S_ISDIR(attr.mode)) {
    const bool enter = walk.hits >= kHitsBeforeDirectories;
    if (!enter && walk.passed == kNothing) walk.passed = walk.cookie;
    if (enter) walk.dir = next;
    walk.cookie = enter ? 0 : cookie;
    return true;
  }
  const bool small = S_ISREG(attr.mode) && attr.size > 0 && attr.size <= options.max_file_bytes;
  if (small && (attr.size > credit || (attr.size > room && !out.empty()))) return false;  // later
  walk.cookie = cookie;
  if (!small || ahead.contains(next)) return true;
  remember_locked(walk, next, attr);
  out.push_back({next, attr});
  return true;
}

// To the directory above, behind the one that is done.
bool Prefetcher::Impl::climb(const sync::Mirror& mirror, Walk& walk, std::size_t& steps) const {
  if (walk.hits < kHitsBeforeDirectories || walk.dir == sync::Mirror::kRoot) return false;
  const auto done = walk.dir;
  const auto up = mirror.parent(done);
  if (up == kNoNode || up == done) return false;
  walk.cookie = mirror.cookie(up, done);
  walk.dir = up;
  steps -= std::min<std::size_t>(steps, 1);
  return true;
}

void Prefetcher::Impl::remember_locked(Walk& walk, NodeIndex node, const wire::Attr& attr) {
  if (ahead.size() >= options.max_ahead_files) forget_locked(ages.front());
  ages.push_back(node);
  ahead[node] = {wire::identity(attr), walk.number, attr.size, std::prev(ages.end())};
  walk.ahead += attr.size;
  credit -= attr.size;
  counts.asked_bytes += attr.size;
}

void Prefetcher::Impl::send(const std::shared_ptr<Impl>& self, std::uint64_t walk,
                            const std::vector<Batch>& batches) {
  if (batches.empty()) return;
  const auto trips = std::chrono::duration<double>(2 * link.status().rtt).count();
  max_window = std::clamp(static_cast<std::uint64_t>(trips * static_cast<double>(options.window_rate)),
                          options.least_window, options.max_window);
  for (const auto& batch : batches) {
    std::uint64_t bytes = 0;
    for (const auto& wanted : batch) bytes += wanted.attr.size;
    const auto spared = cache.prefetch(batch, [weak = std::weak_ptr(self), walk] {
      if (const auto alive = weak.lock()) alive->batch_ended(alive, walk);
    });
    MutexLock lock(mu);
    credit += spared;
    counts.asked_bytes -= spared;
    if (spared == bytes) --counts.batches;  // nothing was sent
  }
}

void Prefetcher::Impl::batch_ended(const std::shared_ptr<Impl>& self, std::uint64_t number) {
  std::vector<Batch> batches;
  tree.read([&](const sync::Mirror& mirror) {
    MutexLock lock(mu);
    counts.batches -= std::min<std::size_t>(counts.batches, 1);
    if (auto* const walk = find_locked(number)) batches = guess_locked(mirror, *walk);
  });
  send(self, number, batches);
}

Prefetcher::Prefetcher(sync::TreeStore& tree, BlockCache& cache, api::AgentLink& link,
                       PrefetchOptions options)
    : impl_(std::make_shared<Impl>(tree, cache, link, options)) {}
Prefetcher::~Prefetcher() = default;

void Prefetcher::on_read(NodeIndex node, const wire::Attr& attr) {
  if (attr.size == 0 || attr.size > impl_->options.max_file_bytes) return;
  impl_->on_read(impl_, node, attr);
}

PrefetchStats Prefetcher::stats() const {
  MutexLock lock(impl_->mu);
  auto stats = impl_->counts;
  stats.walks = impl_->walks.size();
  stats.ahead_files = impl_->ahead.size();
  return stats;
}

}  // namespace nearbox::fs
