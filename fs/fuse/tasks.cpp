// SPDX-License-Identifier: Apache-2.0
// How Session turns a request into operations of the log: record, send, apply to the mirror, reply.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

#include "fs/core/tree_hooks.h"
#include "fs/fuse/session.h"

namespace nearbox::fs {

using sync::kNoNode;
using sync::NodeIndex;

namespace {
constexpr int kMaxAttempts = 64;  // a file whose directories are renamed all the time
constexpr int kPatience = 3;      // attempts after which further renames wait for it
}  // namespace

struct Session::Running {
  Task task;
  ParkedTable::Id id = 0;
  base::Mutex mu;  // leaf
  std::size_t unapplied GUARDED_BY(mu) = 0;
  std::size_t unreplied GUARDED_BY(mu) = 0;
  std::vector<int> attempt GUARDED_BY(mu);          // the submission of op i that counts
  std::vector<std::uint64_t> epoch GUARDED_BY(mu);  // of DirRenames, before op i's paths were made
  std::vector<bool> replied GUARDED_BY(mu);
  std::vector<bool> holds GUARDED_BY(mu);  // op i holds DirRenames back
  bool failed GUARDED_BY(mu) = false;      // one of them
  int error GUARDED_BY(mu) = 0;            // the first
  std::atomic<bool> surprising{false};     // the outcome is not what the kernel concludes from the answer
  wire::OpDone last GUARDED_BY(mu);
};

// Parks the request and sends its operations. They are recorded even if the caller is killed from here
// on: an operation that was sent is not undone.
void Session::run(Request request, Task task) {
  auto running = std::make_shared<Running>();
  const std::size_t count = task.ops.size();
  {
    base::MutexLock lock(running->mu);
    running->unapplied = running->unreplied = count;
    running->attempt.assign(count, 0);
    running->replied.assign(count, false);
    running->holds.assign(count, false);
    running->epoch.assign(count, services_.log.dir_renames().epoch());
  }
  running->task = std::move(task);
  running->id =
      park(std::move(request), running->task.busy1, running->task.busy2, ParkedTable::Kind::kChange);
  if (running->id == 0) return;
  services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    for (const auto node : running->task.nodes) mirror.pin(node);
    for (const auto node : running->task.dirs) mirror.pin(node);
  });
  begin_operations(running->task);
  const auto send = [self = shared_from_this(), running, count] {
    for (std::size_t i = 0; i < count; ++i) self->submit(running, i, 0);
  };
  if (!running->task.renames_directory) return send();
  services_.log.dir_renames().begin(send);
}

void Session::begin_operations(const Task& task) {
  for (const auto& [dir, id, name] : task.entries) services_.tree.begin_operation(dir, id, name);
  for (const auto dir : task.dirs) {
    if (task.entries.empty()) services_.tree.begin_operation(dir);
  }
  for (const auto node : task.nodes) services_.tree.begin_operation(node);
}

void Session::end_operations(const Task& task, bool failed) {
  for (const auto& [dir, id, name] : task.entries) {
    if (services_.tree.end_operation(dir, id, name, failed) && failed) services_.tree.look_again(dir);
  }
  for (const auto dir : task.dirs) {
    if (task.entries.empty()) services_.tree.end_operation(dir);
  }
  for (const auto node : task.nodes) services_.tree.end_operation(node);
}

void Session::submit(const std::shared_ptr<Running>& running, std::size_t i, int attempt) {
  auto self = shared_from_this();
  wire::Op op = running->task.locate ? running->task.ops[i] : std::move(running->task.ops[i]);
  services_.log.submit(
      std::move(op),
      [self, running, i, attempt](const wire::OpDone& done) { self->applied(running, i, attempt, done); },
      [self, running, i, attempt](const wire::OpDone& done) { self->replied(running, i, attempt, done); });
}

// A directory above was renamed while the operation was on its way: again, by the paths of now.
bool Session::send_again(const std::shared_ptr<Running>& running, std::size_t i, int attempt,
                         const wire::OpDone& done) {
  Task& task = running->task;
  if (!task.locate || attempt >= kMaxAttempts) return false;
  if (done.error != ESTALE && done.error != ENOENT && done.error != ENOTDIR) return false;
  auto& renames = services_.log.dir_renames();
  const auto epoch = renames.epoch();
  wire::Op& op = task.ops[i];
  const auto path = op.path;
  const auto path2 = op.path2;
  if (!task.locate(op)) return false;
  bool hold = false;
  {
    base::MutexLock lock(running->mu);
    const bool moved = op.path != path || op.path2 != path2 || !renames.quiet_since(running->epoch[i]);
    if (!moved) return false;
    running->epoch[i] = epoch;
    running->attempt[i] = attempt + 1;
    hold = attempt + 1 >= kPatience && !running->holds[i];
    if (hold) running->holds[i] = true;
  }
  // Where the renames answer faster than we send again, they would overtake it each time.
  if (hold) renames.hold();
  submit(running, i, attempt + 1);
  return true;
}

void Session::applied(const std::shared_ptr<Running>& running, std::size_t i, int attempt,
                      const wire::OpDone& done) {
  if (done.error != 0 && send_again(running, i, attempt, done)) return;
  Task& task = running->task;
  bool last = false;
  bool held = false;
  bool failed = false;
  {
    base::MutexLock lock(running->mu);
    last = --running->unapplied == 0;
    held = running->holds[i];
    running->failed = running->failed || done.error != 0;
    failed = running->failed;
  }
  // The kernel learns of the change from the answer, unless the request was answered with an error before.
  const bool parked = parked_.contains(running->id);
  sync::Changes others;
  services_.tree.write(
      [&](sync::Mirror& mirror, sync::Changes& changes) {
        if (done.error != 0 || !task.apply) return;
        task.apply(i, done, mirror, changes);
        if (parked) others = other_names(task, changes);
      },
      parked ? this : nullptr);
  for (const auto& change : others) tell_kernel(change);
  if (done.error == 0 && !as_believed(task)) running->surprising = true;
  if (parked && !parked_.contains(running->id)) tell_own_kernel(task);  // answered meanwhile
  if (done.error == 0 && task.after) task.after(done);
  if (held) services_.log.dir_renames().release();
  if (!last) return;
  end_operations(task, failed);
  if (task.renames_directory) services_.log.dir_renames().end();
  services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    for (const auto node : task.nodes) mirror.unpin(node);
    for (const auto node : task.dirs) mirror.unpin(node);
  });
}

void Session::replied(const std::shared_ptr<Running>& running, std::size_t i, int attempt,
                      const wire::OpDone& done) {
  int error = 0;
  wire::OpDone last;
  {
    base::MutexLock lock(running->mu);
    if (running->attempt[i] != attempt || running->replied[i]) return;
    running->replied[i] = true;
    if (running->error == 0) running->error = done.error;
    running->last = done;
    if (--running->unreplied != 0) return;
    error = running->error;
    last = running->last;
  }
  if (!stale(error) || !parked_.contains(running->id)) return answer(*running, error, last);
  // The sandbox is not what the mirror shows. Looked at first, so that whoever tries again meets what is
  // there now: the kernel itself does, once, for calls by path that end with ESTALE.
  refresh(services_.tree, services_.link, services_.log.dir_renames(), paths_of(running->task),
          [self = shared_from_this(), running, error, last] { self->answer(*running, error, last); });
}

// Errors by which the agent says that a name is not there, is there, or is another's.
bool Session::stale(int error) {
  return error == ESTALE || error == ENOENT || error == EEXIST || error == ENOTDIR || error == EISDIR;
}

// What a task is about, by the paths of now.
std::vector<std::string> Session::paths_of(const Task& task) const {
  std::vector<std::string> paths;
  services_.tree.read([&](const sync::Mirror& mirror) {
    const auto add = [&](NodeIndex node, const std::string& name) {
      auto path = mirror.alive(node) ? mirror.path(node) : std::nullopt;
      if (!path) return;
      if (!name.empty()) *path += (path->empty() ? "" : "/") + name;
      if (path->size() < wire::kMaxPath) paths.push_back(std::move(*path));
    };
    for (const auto node : task.nodes) add(node, "");
    for (const auto& [dir, name] : task.names) add(inodes_.node(dir), name);
  });
  return paths;
}

void Session::answer(const Running& running, int error, const wire::OpDone& last) {
  auto request = parked_.take(running.id);
  const Task& task = running.task;
  if (!request) return tell_own_kernel(task);
  if (error == 0) {
    task.answer(std::move(*request), last);
    if (running.surprising) tell_own_kernel(task);
    return;
  }
  request->error(error);
  // It may be applied all the same, or its first operation was.
  if (error == ETIMEDOUT || task.ops.size() > 1) tell_own_kernel(task);
}

// The kernel was told that a change failed which was made, or may be yet.
void Session::tell_own_kernel(const Task& task) {
  for (const auto& [dir, name] : task.names) {
    notifier_->entry(dir, name);
    notifier_->data(dir);
  }
  for (const auto* nodes : {&task.dirs, &task.nodes}) {
    for (const auto node : *nodes) {
      if (const Ino ino = inodes_.ino(node); ino != 0) notifier_->data(ino);
    }
  }
}

// What an own operation showed of names that are not its own: a file's number was given again, so the names
// it had are gone, which nobody told yet.
sync::Changes Session::other_names(const Task& task, const sync::Changes& changes) const {
  using Kind = sync::Change::Kind;
  sync::Changes others;
  for (const auto& change : changes) {
    if (change.kind != Kind::kEntry && change.kind != Kind::kGone) continue;
    const Ino dir = inodes_.ino(change.dir);
    const auto own = [&](const auto& name) { return name.first == dir && name.second == change.name; };
    if (dir != 0 && std::none_of(task.names.begin(), task.names.end(), own)) others.push_back(change);
  }
  return others;
}

// Somebody else was at the same names: what the kernel does with its entries now is wrong.
bool Session::as_believed(const Task& task) const {
  if (task.leads.empty()) return true;
  return services_.tree.read([&](const sync::Mirror& mirror) {
    for (std::size_t i = 0; i < task.leads.size(); ++i) {
      const auto dir = inodes_.node(task.names[i].first);
      if (mirror.lookup(dir, task.names[i].second) != task.leads[i]) return false;
    }
    return true;
  });
}

// Whether content may differ, as far as attributes tell. A change time says so only where nobody counts: own
// renames and links move it too.
bool Session::changed(const wire::Attr& before, const wire::Attr& after) {
  const bool counted = before.version != 0 && after.version != 0;
  return before.size != after.size || before.mtime_ns != after.mtime_ns ||
         (counted ? before.version != after.version : before.ctime_ns != after.ctime_ns);
}

// An own operation that leaves the content alone found other content than the mirror had: somebody else
// wrote, and this kernel hears of it nowhere else. Under the tree's lock.
void Session::note_foreign(NodeIndex node, const wire::Attr& before, const wire::Attr& after) {
  if (!S_ISREG(after.mode) || !wire::same_node(before, after)) return;
  if (!changed(before, after)) return;
  services_.cache.wrote(before, after, 0, kWholeFile);
  if (const Ino ino = inodes_.ino(node); ino != 0) notifier_->data(ino);  // left aside while it is busy
}

std::function<bool(wire::Op&)> Session::by_node(NodeIndex node, const wire::NodeId& id) {
  return [this, node, id](wire::Op& op) {
    auto call = locate(services_.tree, services_.log.orphans(), node, id);
    if (!call) return false;
    op.root = call->root;
    op.path = std::move(call->path);
    op.orphan = call->orphan;
    return true;
  };
}

std::function<bool(wire::Op&)> Session::by_name(NodeIndex dir, const std::string& name) {
  return [this, dir, name](wire::Op& op) {
    auto path = services_.tree.read(
        [&](const sync::Mirror& mirror) { return mirror.alive(dir) ? mirror.path(dir) : std::nullopt; });
    if (!path) return false;
    op.root = services_.tree.root();
    op.path = path->empty() ? name : *path + "/" + name;
    return op.path.size() < wire::kMaxPath;
  };
}

}  // namespace nearbox::fs
