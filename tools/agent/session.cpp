// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/session.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "client/base/fault.h"
#include "tools/agent/fs_path.h"
#include "tools/agent/tree_stream.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kEventChunk = 256 * 1024;
constexpr std::chrono::seconds kSettleWait{2};  // then the client asks for a barrier itself

std::string below(const Root& root, const std::string& path) {
  return root.path == "/" ? "/" + path : root.path + "/" + path;
}

}  // namespace

Session::Session(const wire::SessionId& id, std::uint64_t instance, const Identity& who,
                 const ProcTable::Options& procs, base::Timers& timers, Watcher& watcher, base::Logger& log)
    : roots(who),
      parking(std::make_shared<Parking>(timers)),
      small("small-calls", kSmallThreads, kSmallPerLane),
      streams("streams", kStreamThreads, kStreamsPerLane),
      id_(id),
      instance_(instance),
      who_(who),
      log_(log),
      watcher_(watcher),
      procs_(std::make_unique<ProcTable>(
          [&] {
            auto own = procs;
            own.settle = [this] { return settled(); };
            return own;
          }(),
          [this](const wire::ProcExit& exit) { record(wire::EventKind::kProcExit, wire::encode(exit)); },
          log)),
      op_context_{who_, roots, orphans, &watcher.own_writes()},
      executor_(
          [this](const wire::Op& op) {
            run_op(op);
            return wire::OpDone{};
          },
          [](const wire::Op&, const wire::OpDone&) {}, parking,
          [this](const wire::Op& op) {
            return op.path2.empty() ? lane(op.root, op.path) : lane(op.root, {op.path, op.path2});
          }),
      pusher_(
          who_, roots, [this](const wire::RootOpen& call) { return open_root(call); },
          [this](const RootPtr& root, const std::string& path, const Stat* st, bool made) {
            pushed(root, path, st, made);
          }),
      trees_("trees", kTreeThreads),
      pumps_("event-pump", kMaxSubscriptions) {}

Session::~Session() {
  close();
  procs_.reset();  // its last exits are still recorded
}

void Session::close() {
  stopping_.store(true);
  watcher_.forget(this);
  parking->close();
  {
    base::MutexLock lock(mu_);
    for (auto& walking : walks_) walking.walk->stop();
  }
  events.wake();
  stop_applying();
  small.stop();
  watcher_.forget(this);  // a watch call may have begun since
  streams.stop();
  trees_.stop();
  pusher_.stop();
  pumps_.stop();
}

void Session::record(wire::EventKind kind, wire::Bytes body) {
  if (events.append(kind, std::move(body)) == 0) poison("event log full");
}

namespace {

// Whether the operation leaves other bytes in the node it answers.
bool changes_content(const wire::Op& op, const wire::OpDone& done) {
  switch (op.kind) {
    case wire::OpKind::kCreate:
    case wire::OpKind::kMkdir:
    case wire::OpKind::kMknod:
    case wire::OpKind::kSymlink:
    case wire::OpKind::kTruncate:
    case wire::OpKind::kFallocate:
      return done.error == 0;
    case wire::OpKind::kWrite:
    case wire::OpKind::kAppend:
    case wire::OpKind::kCopyRange:
      return done.error == 0 || done.written > 0;
    default:
      return false;
  }
}

// Whether it changes bytes of a node that is there.
bool writes(const wire::Op& op) {
  const bool bytes = op.kind == wire::OpKind::kWrite || op.kind == wire::OpKind::kAppend ||
                     op.kind == wire::OpKind::kTruncate || op.kind == wire::OpKind::kFallocate;
  return bytes && op.expect.ino != 0;
}

}  // namespace

OwnChange Session::own_change(const wire::Op& op, const wire::OpDone& done) {
  OwnChange change;
  if (auto root = roots.get(op.root)) change.root = std::move(*root);
  if (op.orphan == 0 && op.kind != wire::OpKind::kCopyRange) change.paths.push_back(op.path);
  const bool two = op.kind == wire::OpKind::kRename || op.kind == wire::OpKind::kLink ||
                   op.kind == wire::OpKind::kCopyRange;
  if (two) change.paths.insert(change.paths.begin(), op.path2);  // the new name first
  change.attr = done.attr;
  change.made = op.kind == wire::OpKind::kMkdir;
  for (const auto* parent : {&done.parent, &done.parent2}) {
    if (parent->ino != 0) change.dirs.push_back(wire::identity(*parent));
  }
  return change;
}

void Session::run_op(const wire::Op& op) {
  if (poisoned()) return;  // its client starts anew
  const bool watched = watcher_.watching();
  const auto begun = watcher_.op_begins();
  std::optional<Watcher::Writing> writing;
  if (watched && writes(op)) writing.emplace(watcher_, this, op.expect);
  auto done = apply_op(op_context_, op);
  if (done.attr.ino != 0 && changes_content(op, done)) {
    const auto version = Versions::process().bump(wire::identity(done.attr));
    if (!roots.uncounted(op.root, op.path) && version != 0) done.attr.version = version;
  }
  const bool tells = watched && (done.error == 0 || done.written > 0) && op.kind != wire::OpKind::kFsync;
  const auto change = tells || writing ? own_change(op, done) : OwnChange{};
  if (tells) watcher_.op_applied(this, change);
  if (poisoned()) return;
  if (base::fault::active("agent.crash_after_apply", op.path)) std::abort();
  if (op.op_id % 8 == 0 && base::fault::active("agent.late_done", op.path)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(op.op_id % 27));
  }
  if (!tells) {
    record(wire::EventKind::kOpDone, wire::encode(done));
    if (!writing) return;
    writing.reset();
    return watcher_.op_told(begun, change);  // what was not told meanwhile
  }
  bool recorded = false;
  auto body = wire::encode(done);
  watcher_.op_recorded(this, change,
                       [&] { recorded = events.append(wire::EventKind::kOpDone, std::move(body)) != 0; });
  if (!recorded) return poison("event log full");
  writing.reset();
  watcher_.op_told(begun, change);
}

// A push is told to everybody, its own client included: it has no overlay of it.
void Session::pushed(const RootPtr& root, const std::string& path, const Stat* st, bool made) {
  if (!watcher_.watching()) return;
  OwnChange change;
  change.root = root;
  change.paths.push_back(path);
  change.made = made || (st != nullptr && S_ISDIR(st->st_mode));
  if (st != nullptr) {
    if (S_ISREG(st->st_mode)) (void)Versions::process().bump(node_of(*st));
    change.attr = make_attr(*st);
  }
  watcher_.op_applied(nullptr, std::move(change));
}

base::Result<wire::WatchReply> Session::watch(const wire::Watch& call) {
  auto root = roots.get(call.root);
  if (!root) return std::move(root).error();
  auto watched = watcher_.watch(this, events, call.root, *root, Clock::now() + kWatchDeadline);
  if (watched) roots.set_counted((*root)->path, watched->kind != wire::WatchKind::kNone);
  return watched;
}

base::Result<wire::BarrierReply> Session::barrier(const wire::Barrier& call) {
  return watcher_.barrier(this, call.root, Clock::now() + kWatchDeadline);
}

// Whoever runs a command waits for what is told by then.
ProcTable::Settled Session::settled() {
  const auto barrier = watcher_.barrier(this, 0, Clock::now() + kSettleWait);
  return barrier ? ProcTable::Settled{instance_, barrier->seq} : ProcTable::Settled{};
}

base::Result<wire::MountsReply> Session::mounts_below(const wire::Mounts& call) {
  auto root = roots.get(call.root);
  if (!root) return std::move(root).error();
  return watcher_.mounts(*root);
}

base::Result<wire::RootReply> Session::open_root(const wire::RootOpen& call) {
  std::string made;
  auto opened = roots.open(call, &made);
  // Nobody else tells of it: events of this process are left out.
  if (!made.empty() && watcher_.watching()) watcher_.directory_made(made);
  return opened;
}

bool Session::attach(channel::Carrier* carrier) {
  {
    base::MutexLock lock(mu_);
    if (carriers_.size() >= kMaxSessionConnections) return false;
    carriers_.insert(carrier);
  }
  procs_->set_connected(true);
  return true;
}

void Session::detach(channel::Carrier* carrier) {
  {
    base::MutexLock lock(mu_);
    carriers_.erase(carrier);
    if (!carriers_.empty()) return;
    alone_since_ = Clock::now();
  }
  procs_->set_connected(false);
  if (connections() > 0) procs_->set_connected(true);  // one came in between
}

std::size_t Session::connections() {
  base::MutexLock lock(mu_);
  return carriers_.size();
}

std::optional<Session::Clock::time_point> Session::alone_since() {
  base::MutexLock lock(mu_);
  if (!carriers_.empty()) return std::nullopt;
  return alone_since_;
}

void Session::drop_connections() {
  base::MutexLock lock(mu_);
  for (auto* carrier : carriers_) carrier->shutdown();
}

void Session::poison(const char* why) {
  if (poisoned_.exchange(true)) return;
  log_.warn(std::string("event=session_poisoned why=\"") + why + "\"");
  drop_connections();
}

void Session::stop_applying() {
  base::MutexLock lock(stop_mu_);  // whoever comes second waits too
  executor_.stop();
}

void Session::confirm(const wire::Confirm& note) {
  events.confirm(note.seq);
  if (base::fault::active("agent.frozen_nonce")) return;
  base::MutexLock lock(mu_);
  nonce_ = std::max(nonce_, note.nonce);  // one that took another lane or connection may come late
}

std::uint64_t Session::nonce() {
  base::MutexLock lock(mu_);
  return nonce_;
}

WorkerPool::Lane Session::lane(std::uint32_t root, const std::string& path) {
  const auto at = roots.get(root);
  return at ? mounts.of(below(**at, path)) : 0;
}

WorkerPool::Lane Session::lane(std::uint32_t root, const std::vector<std::string>& paths) {
  const auto at = roots.get(root);
  if (!at) return 0;
  const auto own = mounts.of((*at)->path);
  for (const auto& path : paths) {
    if (const auto other = mounts.of(below(**at, path)); other != own) return other;
  }
  return own;
}

void Session::read(wire::Read call, channel::ResponderPtr responder) {
  if (responder->cancelled()) return responder->end(ECANCELED);
  Parking::Item hold{"agent.hold_read", call.at.path, [responder] { return responder->cancelled(); },
                     [this, call, responder] { read(call, responder); }};
  if (parking->park_if_held(hold)) return;
  // A short read never waits for credit; long ones have threads of their own, so that a client which
  // takes its time with them is still answered everything else.
  WorkerPool& pool = call.length <= kReadChunk ? small : streams;
  const bool taken = pool.submit(
      [this, call, responder] {
        auto context = reads();
        answer_read(context, call, *responder);
      },
      lane(call.at.root, call.at.path));
  if (!taken) responder->end(EBUSY);
}

void Session::read_many(wire::ReadMany call, channel::ResponderPtr responder) {
  if (responder->cancelled()) return responder->end(ECANCELED);
  for (const auto& item : call.items) {
    if (!base::fault::active("agent.hold_read", item.path)) continue;
    Parking::Item hold{"agent.hold_read", item.path, [responder] { return responder->cancelled(); },
                       [this, call, responder] { read_many(call, responder); }};
    if (parking->park_if_held(hold)) return;
  }
  std::vector<std::string> paths;
  for (const auto& item : call.items) paths.push_back(item.path);
  const auto at = lane(call.root, paths);
  const bool taken = streams.submit(
      [this, call = std::move(call), responder] {
        auto context = reads();
        answer_read_many(context, call, *responder);
      },
      at);
  if (!taken) responder->end(EBUSY);
}

void Session::apply(std::vector<wire::Op> ops) {
  if (!executor_.submit(std::move(ops))) poison("too many operations in flight");
}

void Session::subscribe(const wire::Subscribe& request, const channel::ResponderPtr& responder) {
  // A client of another instance starts from what is kept; the same one from where it was.
  const bool goes_on = request.instance == instance_;
  const auto after = goes_on ? request.after_seq : events.confirmed();
  if (goes_on) {
    const auto known = events.check(after, request.tag);
    if (!known && !base::fault::active("agent.no_tag_check")) return responder->end(known.error().as_errno());
  }
  {
    base::MutexLock lock(mu_);
    if (subscriptions_ >= kMaxSubscriptions) return responder->end(EBUSY);
    ++subscriptions_;
  }
  const bool taken = pumps_.submit([this, after, responder] {
    pump(after, *responder);
    base::MutexLock lock(mu_);
    --subscriptions_;
  });
  if (taken) return;
  {
    base::MutexLock lock(mu_);
    --subscriptions_;
  }
  responder->end(ESHUTDOWN);
}

void Session::pump(std::uint64_t after, channel::Responder& responder) {
  wire::Bytes out;
  while (true) {
    const auto wakes = events.wakes();
    if (stopping_.load() || responder.cancelled()) break;
    out.clear();
    const auto taken = events.take(after, kEventChunk, out, Clock::now() + base::kIdleWait, wakes);
    if (!taken) return responder.end(taken.error().as_errno());
    if (!out.empty() && !responder.send(out)) break;
  }
  responder.end(ECANCELED);
}

void Session::tree(const wire::Tree& request, const void* connection,
                   const channel::ResponderPtr& responder) {
  const bool taken =
      trees_.submit([this, request, connection, responder] { run_tree(request, connection, *responder); });
  if (!taken) responder->end(ESHUTDOWN);
}

void Session::run_tree(const wire::Tree& request, const void* connection, channel::Responder& responder) {
  auto root = roots.get(request.root);
  if (!root) return responder.end(root.error().as_errno());
  wire::TreeReply reply;
  reply.seq = events.last_seq();
  auto started = TreeWalk::start(std::move(*root), request, &watcher_.probe(), &roots);
  if (!started) return responder.end(started.error().as_errno());
  const std::shared_ptr<TreeWalk> walk = std::move(*started);
  std::list<Walking>::iterator here;
  {
    base::MutexLock lock(mu_);
    here = walks_.insert(walks_.end(), {connection, responder.call_id(), walk});
    if (stopping_.load()) walk->stop();
  }
  const int error = stream_tree(*walk, responder);
  {
    base::MutexLock lock(mu_);
    walks_.erase(here);
  }
  const auto counts = walk->counts();
  if (error != 0) return responder.end(error);
  reply.entries = counts.entries;
  reply.directories = counts.directories;
  reply.truncated = counts.truncated;
  responder.end(0, wire::encode(reply));
}

void Session::hurry(const wire::TreeHurry& note, const void* connection) {
  std::shared_ptr<TreeWalk> walk;
  {
    base::MutexLock lock(mu_);
    for (const auto& walking : walks_) {
      if (walking.call_id != note.call_id) continue;
      walk = walking.walk;
      if (walking.connection == connection) break;  // else the one of another connection will do
    }
  }
  if (walk) walk->hurry(note.path);
}

bool Session::busy() { return executor_.waiting() > 0 || procs_->running() > 0; }

bool Session::has_background_process() {
  for (const auto& proc : procs_->list().procs) {
    if (!proc.exited && (proc.flags & wire::kProcBackground) != 0) return true;
  }
  return false;
}

void Session::hang_up_foreground() {
  for (const auto& proc : procs_->list().procs) {
    if (proc.exited || (proc.flags & wire::kProcBackground) != 0) continue;
    (void)procs_->signal({proc.proc, SIGHUP, true});
  }
}

}  // namespace nearbox::agent
