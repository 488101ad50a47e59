// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <sys/stat.h>

#include "sync/engine/tree_store_impl.h"

// The calls of TreeStore to the agent: single questions, and walks whose blocks go into the mirror.
namespace nearbox::sync {

// A question that may be asked again when the connection was lost.
class TreeStore::Impl::AnswerSink : public api::CallSink {
 public:
  AnswerSink(std::shared_ptr<Impl> impl, std::uint64_t id, wire::Bytes payload, Answer answer)
      : impl_(std::move(impl)), id_(id), payload_(std::move(payload)), answer_(std::move(answer)) {}
  void on_end(int error, wire::ByteView payload) noexcept override {
    const Use use(*impl_);
    if (!use) return;
    {
      base::MutexLock lock(impl_->mu);
      impl_->calls.erase(id_);
    }
    answer_(error, payload);
  }
  std::optional<wire::Bytes> on_lost() noexcept override { return payload_; }

 private:
  const std::shared_ptr<Impl> impl_;
  const std::uint64_t id_;
  const wire::Bytes payload_;
  const Answer answer_;
};

class TreeStore::Impl::WalkSink : public api::CallSink {
 public:
  WalkSink(std::shared_ptr<Impl> impl, WalkPtr walk, wire::Bytes payload)
      : impl_(std::move(impl)), walk_(std::move(walk)), payload_(std::move(payload)) {}

  void on_chunk(wire::ByteView bytes) noexcept override {
    const Use use(*impl_);
    if (!use || walk_->broken != 0) return;
    walk_->heard = Clock::now();
    if (walk_->full) return impl_->enough(*walk_);
    const auto fed =
        walk_->unpacker.feed(bytes, [this](const auto& blocks) { impl_->apply(*walk_, blocks); });
    if (fed) return;
    walk_->broken = fed.error().as_errno();
    impl_->log.warn("event=bad_tree_stream why=\"" + fed.error().message() + "\"");
    api::CallToken token = 0;
    {
      base::MutexLock lock(impl_->mu);
      if (const auto found = impl_->calls.find(walk_->id); found != impl_->calls.end()) token = found->second;
    }
    if (token != 0) impl_->link.cancel(token);  // else it ends by itself: nothing of it is used any more
  }
  // A walk has no position: it starts again, and what the mirror has seen of it stays.
  std::optional<wire::Bytes> on_lost() noexcept override {
    const Use use(*impl_);
    if (!use || walk_->broken != 0 || walk_->stalled || walk_->full) return std::nullopt;
    walk_->heard = Clock::now();
    impl_->store.write([&](Mirror& mirror, Changes&) { mirror.end_scan(walk_->scan); });
    walk_->unpacker.reset();
    impl_->walk_begins(*walk_);
    return payload_;
  }
  void on_end(int error, wire::ByteView payload) noexcept override {
    const Use use(*impl_);
    if (!use) return;
    impl_->walk_ended(walk_, error, payload);
  }

 private:
  const std::shared_ptr<Impl> impl_;
  const WalkPtr walk_;
  const wire::Bytes payload_;
};

void TreeStore::Impl::track(std::uint64_t id, api::CallToken token) {
  base::MutexLock lock(mu);
  if (const auto found = calls.find(id); found != calls.end()) found->second = token;
}

void TreeStore::Impl::unary(wire::Method method, wire::Bytes payload, Deadline deadline, Answer answer) {
  std::uint64_t id = 0;
  {
    base::MutexLock lock(mu);
    id = next_id++;
    calls.emplace(id, 0);
  }
  api::CallOptions options;
  options.deadline = deadline;
  auto sink = std::make_unique<AnswerSink>(shared_from_this(), id, payload, std::move(answer));
  track(id, link.call(method, std::move(payload), std::move(sink), options));
}

// ---- paths

// Asks for every directory on the way to `path` and for itself, and makes them known.
void TreeStore::Impl::stat_path(const std::string& path, Deadline deadline, Stated then) {
  if (path.empty()) {
    if (!with_root([then](std::uint32_t) { then(0); })) then(EAGAIN);
    return;
  }
  std::vector<std::string> prefixes;
  for (auto slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    prefixes.push_back(path.substr(0, slash));
  }
  prefixes.push_back(path);
  const bool asked = with_root([this, path, deadline, prefixes, then](std::uint32_t number) {
    const auto question = store.ask_outside();
    wire::StatMany ask{number, prefixes};
    unary(wire::Method::kStatMany, wire::encode(ask), deadline,
          [this, path, deadline, prefixes, then, question](int error, wire::ByteView payload) {
            if (error == ECONNRESET && Clock::now() < deadline) {  // another agent: another root number
              later(kRetryPause, [this, path, deadline, then] { stat_path(path, deadline, then); });
              return;
            }
            const auto reply = error == 0 ? wire::decode<wire::StatManyReply>(payload) : std::nullopt;
            if (error == 0 && (!reply || reply->results.size() != prefixes.size())) error = EPROTO;
            then(error != 0 ? error : link_prefixes(prefixes, reply->results, *question));
          });
  });
  if (!asked) then(EAGAIN);
}

int TreeStore::Impl::link_prefixes(const std::vector<std::string>& prefixes,
                                   const std::vector<wire::StatResult>& results, const Question& question) {
  return store.write([&](Mirror& mirror, Changes& changes) -> int {
    auto dir = Mirror::kRoot;
    for (std::size_t i = 0; i < prefixes.size(); ++i) {
      const auto& result = results[i];
      const auto name = std::string_view(prefixes[i]).substr(prefixes[i].rfind('/') + 1);  // npos + 1 is 0
      const auto at = mirror.attr(dir);
      const bool keep = frozen(dir, question.began_) || told_since(question.began_, wire::identity(at), name);
      if (result.error != 0) {
        const bool gone = result.error == ENOENT || result.error == ENOTDIR;
        if (gone && !keep) mirror.unlink(dir, name, changes);
        return result.error > 0 && result.error < 4096 ? result.error : EPROTO;
      }
      auto node = mirror.lookup(dir, name);
      const bool newer = told_since(question.began_, wire::identity(result.attr), {});
      if ((!keep && !(newer && node != kNoNode)) ||
          (node == kNoNode && mirror.listing(dir) != Listing::kComplete)) {
        node = mirror.link(dir, name, result.attr, result.target, changes);
      }
      if (node == kNoNode) return ENOENT;
      if (i + 1 < prefixes.size() && !S_ISDIR(mirror.attr(node).mode)) return ENOTDIR;
      dir = node;
    }
    return 0;
  });
}

// ---- walks

void TreeStore::Impl::walk(std::string path, std::uint32_t depth, Deadline deadline, Walk::Then then,
                           std::chrono::milliseconds stall) {
  auto one = std::make_shared<Walk>();
  if (by_directory) depth = 1;
  one->path = std::move(path);
  one->depth = depth;
  one->deadline = deadline;
  one->then = std::move(then);
  one->stall = stall;
  one->heard = Clock::now();
  if (stall.count() != 0) watch_stall(one, stall);
  if (!with_root([this, one](std::uint32_t number) { start_walk(one, number); })) one->then(EAGAIN, {});
}

void TreeStore::Impl::start_walk(const WalkPtr& one, std::uint32_t number) {
  one->root = number;
  {
    base::MutexLock lock(mu);
    one->id = next_id++;
    calls.emplace(one->id, 0);
    walks.emplace(one->id, one);
  }
  walk_begins(*one);
  wire::Tree ask;
  ask.root = number;
  ask.path = one->path;
  ask.depth = one->depth;
  ask.max_entries = one->depth == 0 ? budget.load() : Mirror::kMaxNames;  // a directory comes whole
  api::CallOptions options;
  options.deadline = one->deadline;
  options.lane = one->depth == 0 ? api::Lane::kBulk : api::Lane::kSmall;
  options.credit = kTreeCredit;
  auto payload = wire::encode(ask);
  auto sink = std::make_unique<WalkSink>(shared_from_this(), one, payload);
  track(one->id, link.call(wire::Method::kTree, std::move(payload), std::move(sink), options));
}

// Looks once `left` has passed whether the walk is still answered. A link that is down does not count:
// nothing else could be scanned then either.
void TreeStore::Impl::watch_stall(const WalkPtr& one, std::chrono::milliseconds left) {
  later(left, [this, weak = std::weak_ptr(one)] {
    const auto watched = weak.lock();
    if (!watched) return;
    const auto now = Clock::now();
    if (!link.status().up) watched->heard = now;
    const auto rest =
        std::chrono::ceil<std::chrono::milliseconds>(watched->heard.load() + watched->stall - now);
    if (rest.count() > 0) return watch_stall(watched, rest);
    api::CallToken token = 0;
    {
      base::MutexLock lock(mu);
      if (const auto found = calls.find(watched->id); found != calls.end()) token = found->second;
    }
    if (token == 0) return watch_stall(watched, watched->stall);  // between two calls
    watched->stalled = true;
    log.warn("event=tree_stalled");
    link.cancel(token);
  });
}

void TreeStore::Impl::walk_ended(const WalkPtr& one, int error, wire::ByteView payload) {
  {
    base::MutexLock lock(mu);
    calls.erase(one->id);
    walks.erase(one->id);
  }
  walk_is_over(*one);
  if (one->broken != 0) error = one->broken;
  if (one->stalled && error != 0) error = ETIMEDOUT;
  if (one->full && one->broken == 0) error = 0;
  if (error == 0 && !one->full) {
    const auto reply = wire::decode<wire::TreeReply>(payload);
    if (!reply || !one->unpacker.whole()) error = EPROTO;
    if (reply && reply->truncated && one->depth == 0) go_by_directory();
  }
  if (error != 0 || one->full) {
    store.write([&](Mirror& mirror, Changes&) { mirror.end_scan(one->scan); });
  }
  recheck_all(std::exchange(one->unsure, {}));
  if (std::exchange(one->flooded, false) && error == 0 && !one->full) {
    store.write([&](Mirror& mirror, Changes&) { mirror.end_scan(one->scan); });
    error = ECONNRESET;
  }
  if (error == ECONNRESET && Clock::now() < one->deadline) {  // another agent, or all of it is out of date
    one->unpacker.reset();
    one->heard = Clock::now();
    later(kRetryPause, [this, one] {
      if (!with_root([this, one](std::uint32_t number) { start_walk(one, number); })) one->then(EAGAIN, {});
    });
    return;
  }
  one->then(error, one->skipped);
}

// One slice: the tree's lock is held for the blocks of at most 64 KiB, or for one block.
void TreeStore::Impl::apply(Walk& one, const std::vector<wire::TreeBlock>& blocks) {
  const bool full = store.write([&](Mirror& mirror, Changes& changes) {
    const auto skip = [&](NodeIndex node) {
      const bool keep = frozen(node, one.began);
      if (keep && S_ISDIR(mirror.attr(node).mode) && frozen_whole(node, one.began)) one.skipped.insert(node);
      return keep;
    };
    Newer newer;
    newer.by_name = [&](NodeIndex dir) { return !frozen_whole(dir, one.began); };
    newer.name = [&](NodeIndex dir, std::string_view name) {
      return frozen(dir, one.began) && name_frozen(one.began, wire::identity(mirror.attr(dir)), name);
    };
    if (anything_told_since(one.began, one.flooded)) {
      newer.listing = [&](NodeIndex dir) {
        const bool newer_told = listing_told_since(one.began, mirror, dir);
        if (newer_told && mirror.listing(dir) != Listing::kComplete) one.unsure.insert(dir);
        return newer_told;
      };
      newer.name = [&](NodeIndex dir, std::string_view name) {
        const auto at = wire::identity(mirror.attr(dir));
        return told_since(one.began, at, name) ||
               (frozen(dir, one.began) && name_frozen(one.began, at, name));
      };
      newer.attr = [&](const wire::NodeId& node) { return told_since(one.began, node, {}); };
      newer.unsure = [&](NodeIndex dir) { one.unsure.insert(dir); };
    }
    if (one.flooded) return false;
    for (const auto& block : blocks) {
      mirror.apply_block(Mirror::kRoot, block, changes, skip, one.scan, &newer);
    }
    return one.depth == 0 && (by_directory || mirror.expanded_names() >= budget);
  });
  resolve_waiters();
  if (full) enough(one);
}

// ---- operations of our own

// The agent may have looked at it before an operation that is done, or will be.
bool TreeStore::Impl::frozen(NodeIndex node, std::uint64_t began) {
  base::MutexLock lock(ops_mu);
  const auto found = operations.find(node);
  return found != operations.end() && found->second.any(began);
}

bool TreeStore::Impl::frozen_whole(NodeIndex node, std::uint64_t began) {
  base::MutexLock lock(ops_mu);
  const auto found = operations.find(node);
  return found != operations.end() && found->second.whole(began);
}

// An own operation changes the name, or has since.
bool TreeStore::Impl::name_frozen(std::uint64_t began, const wire::NodeId& dir, std::string_view name) {
  {
    base::MutexLock lock(ops_mu);
    if (const auto one = names_changing.find(told_key(dir, name)); one != names_changing.end()) {
      one->second.passed_over = true;
      return true;
    }
  }
  return told_since(began, dir, name);
}

void TreeStore::Impl::walk_begins(Walk& one) {
  {
    base::MutexLock lock(mu);
    one.scan = next_id++;
  }
  base::MutexLock lock(ops_mu);
  one.began = op_epoch;
  running_walks.insert(one.id);
}

void TreeStore::Impl::walk_is_over(const Walk& one) { questions_over(one.id); }

}  // namespace nearbox::sync
