// SPDX-License-Identifier: Apache-2.0
#include "sync/push/push_run.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <pthread.h>
#include <thread>

// Carries a plan out.
namespace nearbox::push {
namespace {

using wire::PushKind;
using wire::PushOutcome;

constexpr std::chrono::milliseconds kTellEvery{100};

// What an action costs in a batch, unpacked.
std::size_t weight(const Action& action) {
  const auto bytes = action.kind == PushKind::kFile ? action.now.stat.size : 0;
  return static_cast<std::size_t>(bytes) + action.path.size() + action.source.size() + 128;
}

bool is_large(const Action& action) {
  return action.kind == PushKind::kFile && action.now.stat.size > wire::kMaxPushFile;
}

std::string_view verb_of(PushKind kind) {
  switch (kind) {
    case PushKind::kDelete:
    case PushKind::kRemoveDir:
      return "delete";
    case PushKind::kRename:
    case PushKind::kRenameTree:
      return "rename";
    case PushKind::kCopy:
      return "copy";
    case PushKind::kMode:
      return "mode";
    case PushKind::kDirectory:
      return "directory";
    default:
      return "send";
  }
}

}  // namespace

void Run::report_plan(const Plan& plan) {
  for (const auto& tree : plan.trees) {
    report_.changes.add({tree.from + "/ -> " + tree.to + "/", "rename"});
    report_.files_sent += tree.entries.size();
  }
  for (const auto* list :
       {&plan.moves, &plan.deletes, &plan.remove_dirs, &plan.contents, &plan.directories}) {
    for (const auto& action : *list) {
      const bool removes = action.kind == PushKind::kDelete;
      if (removes) ++report_.files_deleted;
      if (!removes && is_file(action)) ++report_.files_sent;
      if (action.kind == PushKind::kRename) ++report_.files_renamed;
      if (action.kind == PushKind::kCopy) ++report_.files_copied;
      const bool two = action.kind == PushKind::kRename || action.kind == PushKind::kCopy;
      report_.changes.add(
          {two ? action.source + " -> " + action.path : action.path, std::string(verb_of(action.kind))});
    }
  }
  report_.files_current -= std::min(report_.files_current, report_.files_sent);
}

base::Result<void> Run::execute(Plan plan) {
  for (const auto& path : plan.forget) batch_.remove(path);
  for (const auto* list : {&plan.moves, &plan.contents}) {
    for (const auto& action : *list) {
      if (!is_file(action)) continue;
      ++progress_.files_total;
      if (action.kind == PushKind::kFile) progress_.bytes_total += action.now.stat.size;
    }
  }
  progress_.phase = Progress::Phase::kSend;
  tell_progress(true);
  auto trees = move_trees(plan);
  if (!trees) return std::move(trees).error();
  if (!*trees) {  // somebody was there: the next sync sees what came of it
    report_.warnings.emplace_back(
        "a directory that was renamed here could not be renamed in the sandbox; sync again");
  }
  if (auto done = run_phase(std::move(plan.moves), true); !done) return done;
  std::move(deletes_later_.begin(), deletes_later_.end(), std::back_inserter(plan.deletes));
  std::move(contents_later_.begin(), contents_later_.end(), std::back_inserter(plan.contents));
  if (auto done = run_phase(std::move(plan.deletes), false); !done) return done;
  if (auto done = run_phase(std::move(plan.remove_dirs), true); !done) return done;
  if (auto done = run_phase(std::move(plan.contents), false); !done) return done;
  // Where a directory's mode forbids making others in it, those in it go first: by order, then.
  const bool any_closed =
      std::any_of(plan.directories.begin(), plan.directories.end(),
                  [](const Action& action) { return (action.now.stat.mode & 0300) != 0300; });
  if (any_closed) {
    std::sort(plan.directories.begin(), plan.directories.end(),
              [](const Action& a, const Action& b) { return a.path > b.path; });
  }
  if (auto done = run_phase(std::move(plan.directories), any_closed); !done) return done;
  tell_progress(true);
  return commit(true);
}

// False: one of them is not to be moved as a whole; what is below it is left for the next sync.
base::Result<bool> Run::move_trees(const Plan& plan) {
  if (plan.trees.empty()) return true;
  bool all = true;
  for (const auto& tree : plan.trees) {
    Action action;
    action.kind = PushKind::kRenameTree;
    action.path = tree.to;
    action.source = tree.from;
    action.now = tree.entries.front().second;
    tree_done_ = false;
    if (auto done = run_phase({action}, true); !done) return std::move(done).error();
    if (!tree_done_) {
      all = false;
      continue;
    }
    for (const auto& [rest, entry] : tree.entries) {
      batch_.remove(rest.empty() ? tree.from : tree.from + "/" + rest);
      batch_.put(rest.empty() ? tree.to : tree.to + "/" + rest, entry);
      if (entry.stat.type != index::Type::kFile) continue;
      ++report_.files_sent;
      ++report_.files_renamed;
    }
    if (auto done = commit(true); !done) return std::move(done).error();
  }
  return all;
}

std::vector<Job> Run::jobs_of(std::vector<Task> tasks, bool ordered) const {
  std::vector<Job> jobs;
  std::size_t bytes = 0;
  std::size_t limit = ordered ? kBatchBytes : kFirstBatchBytes;
  // Large ones first: they take the longest.
  const auto small = std::stable_partition(tasks.begin(), tasks.end(),
                                           [](const Task& task) { return is_large(task.action); });
  for (auto it = tasks.begin(); it != small; ++it) {
    jobs.push_back({{}, true});
    jobs.back().tasks.push_back(std::move(*it));
  }
  bool open = false;
  for (auto it = small; it != tasks.end(); ++it) {
    auto& task = *it;
    const auto more = weight(task.action);
    if (open && (bytes + more > limit || jobs.back().tasks.size() >= kBatchEntries)) {
      open = false;
      limit = std::min(limit * 2, kBatchBytes);
    }
    if (!open) {
      jobs.emplace_back();
      bytes = 0;
      open = true;
    }
    bytes += more;
    jobs.back().tasks.push_back(std::move(task));
  }
  return jobs;
}

base::Result<void> Run::run_phase(std::vector<Action> actions, bool ordered) {
  std::vector<Task> tasks;
  tasks.reserve(actions.size());
  for (auto& action : actions) tasks.push_back({std::move(action), 0});
  for (int round = 0; !tasks.empty() && round < kMaxRounds; ++round) {
    if (auto done = run_round(std::move(tasks), ordered); !done) return done;
    tasks = std::exchange(again_, {});
    if (!std::exchange(reopen_, false)) continue;
    if (auto opened = open_again(); !opened) return opened;
  }
  for (auto& task : tasks) take_failed(task, EAGAIN);
  return commit_result_;
}

// Sends all tasks; each has its answer when it returns, or waits in again_.
base::Result<void> Run::run_round(std::vector<Task> tasks, bool ordered) {
  auto jobs = jobs_of(std::move(tasks), ordered);
  std::atomic<std::size_t> next{0};
  std::atomic<bool> quit{false};
  std::size_t ended = 0;
  const JobDone done = [&](JobEnd end) {
    ++ended;
    take(std::move(end));
  };
  const auto work = [&] {
    ::pthread_setname_np(::pthread_self(), "push-send");
    for (auto i = next.fetch_add(1); i < jobs.size() && !quit; i = next.fetch_add(1)) {
      const bool large = jobs[i].large;
      if (!(large ? send_large : send_job)(context_, std::move(jobs[i]), done)) return;
    }
  };
  const auto wait_for = [&](std::size_t count) -> base::Result<void> {
    while (ended < count && fatal_ == 0 && !stop_.stop_requested()) {
      calls_.step(kTellEvery);
      tell_progress(false);
      if (auto fine = commit(false); !fine) return fine;
    }
    return {};
  };
  base::Result<void> result;
  if (ordered) {  // one after the other, on this thread
    for (std::size_t i = 0; i < jobs.size() && result && fatal_ == 0 && !stop_.stop_requested(); ++i) {
      (void)send_job(context_, std::move(jobs[i]), done);
      result = wait_for(i + 1);
    }
  } else {
    std::vector<std::jthread> pool;
    const auto threads = std::min<std::size_t>(
        {kMaxSendThreads, std::max(1U, std::thread::hardware_concurrency()), jobs.size()});
    for (std::size_t i = 0; i < threads; ++i) pool.emplace_back(work);
    result = wait_for(jobs.size());
    quit = true;
    if (ended < jobs.size()) {
      // What is under way may still be acknowledged, which saves sending it again.
      const auto limit = std::chrono::steady_clock::now() + kStopGrace;
      while (fatal_ == 0 && calls_.under_way() > 0 && std::chrono::steady_clock::now() < limit) {
        calls_.step(std::chrono::milliseconds(20));
      }
      calls_.stop();
    }
  }
  if (!result) return result;
  if (fatal_ != 0) return base::errno_error(fatal_, "send changes");
  if (stop_.stop_requested()) {
    calls_.stop();
    return base::errno_error(ECANCELED, "sync");
  }
  return {};
}

// ---- answers --------------------------------------------------------------------------------------

void Run::take(JobEnd end) {
  for (auto& [task, error] : end.local) {
    if (error == ENOENT) {  // deleted since the scan: the next one sees it
      report_.fail(task.action.path, "file.changed", task.action.path + " went away while it was read", true);
    } else {
      fail_local(report_, task.action.path, error, is_file(task.action));
    }
  }
  for (auto& task : end.large) {
    task.action.now.stat.size = std::max<std::uint64_t>(task.action.now.stat.size, wire::kMaxPushFile + 1);
    again_.push_back(std::move(task));
  }
  std::move(end.again.begin(), end.again.end(), std::back_inserter(again_));
  if (end.error == 0) {
    for (std::size_t i = 0; i < end.tasks.size(); ++i) take_result(end.tasks[i], end.results[i]);
    return;
  }
  if (end.error != ECONNRESET && end.error != ESTALE) {
    fatal_ = end.error;
    return;
  }
  reopen_ = true;
  for (auto& task : end.tasks) again_.push_back(std::move(task));
}

void Run::record(const Action& action, wire::PushStamp stamp) {
  if (action.kind == PushKind::kDelete || action.kind == PushKind::kRemoveDir) {
    batch_.remove(action.path);
    return;
  }
  if (action.kind == PushKind::kRenameTree) return;  // move_trees() does
  auto entry = action.now;
  entry.remote_version = stamp;
  batch_.put(action.path, entry);
  batch_.forget(action.path);
  if (action.kind == PushKind::kRename) batch_.remove(action.source);
}

void Run::take_result(Task& task, const wire::PushResult& result) {
  const auto& action = task.action;
  if (result.outcome == PushOutcome::kFailed) return take_failed(task, result.error);
  if (result.outcome == PushOutcome::kLeft) return take_left(task);
  record(action, result.stamp);
  tree_done_ = true;
  if (result.outcome == PushOutcome::kKeptBoth) {
    report_.conflicts.add({action.path, "kept-both", result.kept_as});
  }
  if (action.kind == PushKind::kDelete) {
    if (result.outcome == PushOutcome::kDone) ++report_.files_deleted;
    return;
  }
  if (!is_file(action) || action.kind == PushKind::kRenameTree) return;
  ++progress_.files_done;
  if (result.outcome == PushOutcome::kAlready && action.kind != PushKind::kRename) return;
  ++report_.files_sent;
  if (action.kind == PushKind::kRename) ++report_.files_renamed;
  if (action.kind == PushKind::kCopy) ++report_.files_copied;
}

// Something else is there, and stays.
void Run::take_left(const Task& task) {
  const auto& action = task.action;
  switch (action.kind) {
    case PushKind::kRemoveDir:  // the sandbox's own things are in it
      batch_.remove(action.path);
      return;
    case PushKind::kDirectory:
      report_.fail(action.path, "remote.not_directory", action.path + " is not a directory in the sandbox",
                   false);
      return;
    case PushKind::kDelete:
      batch_.remove(action.path);
      break;
    default:
      if (is_file(action)) ++report_.files_failed;
      break;
  }
  report_.conflicts.add({action.path, "kept-remote", {}});
}

void Run::take_failed(Task& task, int error) {
  auto& action = task.action;
  const bool moved = action.kind == PushKind::kRename || action.kind == PushKind::kCopy;
  if (action.kind == PushKind::kRenameTree && error == ESTALE) return;
  if (moved && (error == ESTALE || error == ENOENT || error == ELOOP || error == ENOTDIR)) {
    // The source is not what it was: the file goes itself.
    if (action.kind == PushKind::kRename) {
      Action remove;
      remove.kind = PushKind::kDelete;
      remove.expect = wire::PushExpect::kBase;
      remove.conflict = action.conflict;
      remove.path = action.source;
      remove.before = action.before;
      remove.now = action.before.value_or(index::Entry{});
      deletes_later_.push_back(std::move(remove));
    }
    action.kind = PushKind::kFile;
    action.expect = wire::PushExpect::kAbsent;
    action.source.clear();
    action.before.reset();
    contents_later_.push_back(std::move(action));
    return;
  }
  // Damaged on its way, changing there, or another file of the same content took what was staged: once more.
  const bool passes = error == EBADMSG || error == EAGAIN || (error == ENOENT && is_large(action));
  // What a large file that did not fit had taken is free again in the next round.
  const bool room_later = (error == ENOSPC || error == EDQUOT) && !is_large(action);
  if ((passes || room_later) && ++task.tries < kMaxTries) {
    again_.push_back(std::move(task));
    return;
  }
  fail_remote(report_, action.path, error, is_file(action) && action.kind != PushKind::kDelete);
}

base::Result<void> Run::commit(bool now) {
  const auto time = std::chrono::steady_clock::now();
  if (batch_.empty() || !commit_result_) return commit_result_;
  if (!now && batch_.size() < kCommitEntries && time - committed_ < kCommitEvery) return {};
  committed_ = time;
  commit_result_ = index_.apply(std::exchange(batch_, {}));
  return commit_result_;
}

void Run::tell_progress(bool now) {
  const auto time = std::chrono::steady_clock::now();
  if (!options_.progress || (!now && time - told_ < kTellEvery)) return;
  told_ = time;
  progress_.bytes_done = std::min(progress_.bytes_total, context_.bytes_read.load());
  progress_.bytes_sent = calls_.bytes_out();
  options_.progress(progress_);
}

}  // namespace nearbox::push
