// SPDX-License-Identifier: Apache-2.0
// How Session turns a request into operations of the log: record, send, apply to the mirror, reply.
#include <cerrno>
#include <utility>

#include "fs/core/tree_hooks.h"
#include "fs/fuse/session.h"

namespace nearbox::fs {

using sync::kNoNode;
using sync::NodeIndex;

struct Session::Running {
  Task task;
  ParkedTable::Id id = 0;
  base::Mutex mu;  // leaf
  std::size_t unapplied GUARDED_BY(mu) = 0;
  std::size_t unreplied GUARDED_BY(mu) = 0;
  std::vector<int> attempt GUARDED_BY(mu);  // the submission of op i that counts
  std::vector<bool> replied GUARDED_BY(mu);
  int error GUARDED_BY(mu) = 0;  // the first
  wire::OpDone last GUARDED_BY(mu);
};

// Parks the request and sends its operations. They are recorded even if the request is interrupted
// from here on: an operation that was sent is not undone.
void Session::run(Request request, Task task) {
  auto running = std::make_shared<Running>();
  const std::size_t count = task.ops.size();
  {
    base::MutexLock lock(running->mu);
    running->unapplied = running->unreplied = count;
    running->attempt.assign(count, 0);
    running->replied.assign(count, false);
  }
  running->task = std::move(task);
  running->id = park(std::move(request), running->task.busy1, running->task.busy2);
  if (running->id == 0) return;
  services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    for (const auto node : running->task.nodes) mirror.pin(node);
    for (const auto node : running->task.dirs) mirror.pin(node);
  });
  for (const auto dir : running->task.dirs) services_.tree.begin_operation(dir);
  for (std::size_t i = 0; i < count; ++i) submit(running, i, 0);
}

void Session::submit(const std::shared_ptr<Running>& running, std::size_t i, int attempt) {
  auto self = shared_from_this();
  wire::Op op = running->task.relocate != kNoNode ? running->task.ops[i] : std::move(running->task.ops[i]);
  services_.log.submit(
      std::move(op),
      [self, running, i, attempt](const wire::OpDone& done) { self->applied(running, i, attempt, done); },
      [self, running, i, attempt](const wire::OpDone& done) { self->replied(running, i, attempt, done); });
}

// A directory above the file was renamed while the operation was on its way: once more, by the path now.
bool Session::send_again(const std::shared_ptr<Running>& running, std::size_t i, int attempt,
                         const wire::OpDone& done) {
  Task& task = running->task;
  if (task.relocate == kNoNode || attempt != 0) return false;
  if (done.error != ESTALE && done.error != ENOENT && done.error != ENOTDIR) return false;
  wire::Op& op = task.ops[i];
  const auto call = locate(services_.tree, services_.log.orphans(), task.relocate, op.expect);
  if (!call || (call->path == op.path && call->orphan == op.orphan)) return false;
  op.path = call->path;
  op.orphan = call->orphan;
  op.root = call->root;
  {
    base::MutexLock lock(running->mu);
    running->attempt[i] = 1;
  }
  submit(running, i, 1);
  return true;
}

void Session::applied(const std::shared_ptr<Running>& running, std::size_t i, int attempt,
                      const wire::OpDone& done) {
  if (done.error != 0 && send_again(running, i, attempt, done)) return;
  Task& task = running->task;
  bool last = false;
  {
    base::MutexLock lock(running->mu);
    last = --running->unapplied == 0;
  }
  services_.tree.write(
      [&](sync::Mirror& mirror, sync::Changes& changes) {
        if (done.error == 0 && task.apply) task.apply(i, done, mirror, changes);
      },
      this);
  if (done.error == 0 && task.after) task.after(done);
  if (!last) return;
  for (const auto dir : task.dirs) services_.tree.end_operation(dir);
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
  auto request = parked_.take(running->id);
  if (!request) return;
  if (error != 0) {
    request->error(error);
  } else {
    running->task.answer(std::move(*request), last);
  }
}

}  // namespace nearbox::fs
