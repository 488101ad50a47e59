// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <stop_token>
#include <string>
#include <unordered_map>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/unique_fd.h"
#include "sync/push/calls.h"
#include "sync/push/load.h"
#include "sync/push/plan.h"
#include "sync/push/push.h"
#include "sync/scan/file_content.h"

// The inside of push(); nothing else includes it.
namespace nearbox::push {

// A change on its way, with how often it was tried.
struct Task {
  Action action;
  int tries = 0;
};

// Tasks that travel together.
struct Job {
  std::vector<Task> tasks;
  bool large = false;  // one file, in parts
};

// What the sending threads need; read-only but for the atomics.
struct SendContext {
  Calls& calls;
  const base::UniqueFd& local_root;
  const scan::RacyRule& racy;
  std::atomic<std::uint32_t> root{0};
  std::int64_t skew_ns = 0;  // added to times of new files
  std::vector<wire::PushStage> stages;
  std::atomic<std::uint64_t> bytes_read{0};
  std::stop_token stop;
};

// How a job ended; made on a sending thread or a link's answer, handled on the caller's.
struct JobEnd {
  std::vector<Task> tasks;                  // those that were sent
  std::vector<wire::PushResult> results;    // of them
  std::vector<std::pair<Task, int>> local;  // could not be read here: errno
  std::vector<Task> large;                  // grew too large for a batch
  std::vector<Task> again;                  // found no room in the batch: it grew
  int error = 0;                            // of the call
};
using JobDone = std::function<void(JobEnd)>;  // called on the caller's thread, by Calls::step()

// push_send.cpp: reads, packs and sends a job of small changes.
bool send_job(SendContext& context, Job job, const JobDone& done);
// large_file.cpp: sends one large file in parts, then the change itself. Occupies its thread.
bool send_large(SendContext& context, Job job, const JobDone& done);

// One push, step by step.
class Run {
 public:
  Run(api::AgentLink& link, const std::string& remote, std::shared_ptr<const ignore::Rules> rules,
      index::Index& baseline, const Options& options, std::stop_token stop);
  base::Result<Report> run();

 private:
  base::Result<void> begin();
  void send_begin(const wire::PushCheckList& list, std::size_t first);
  base::Result<void> open_again();
  base::Result<void> scan();
  base::Result<void> wait_begun();
  base::Result<void> check_empty() const;
  base::Result<void> find_drift();
  base::Result<void> compare_drift(std::vector<scan::Change> others);
  base::Result<void> compare_added();
  std::string read_link(const std::string& path) const;
  base::Result<std::vector<wire::PushCompareResult>> compare(const std::vector<const scan::Change*>& items);
  base::Result<Sources> find_sources();
  base::Result<void> find_extra(Plan& plan);  // mirror.cpp
  void report_plan(const Plan& plan);

  base::Result<void> execute(Plan plan);
  base::Result<bool> move_trees(const Plan& plan);
  base::Result<void> run_phase(std::vector<Action> actions, bool ordered);
  base::Result<void> run_round(std::vector<Task> tasks, bool ordered);
  std::vector<Job> jobs_of(std::vector<Task> tasks, bool ordered) const;
  void take(JobEnd end);
  void take_result(Task& task, const wire::PushResult& result);
  void take_left(const Task& task);
  void take_failed(Task& task, int error);
  void record(const Action& action, wire::PushStamp stamp);
  base::Result<void> commit(bool now);
  void tell_progress(bool now);
  bool is_file(const Action& action) const { return action.now.stat.type == index::Type::kFile; }

  api::AgentLink& link_;
  const std::string& remote_;
  const std::shared_ptr<const ignore::Rules> rules_;
  index::Index& index_;
  const Options& options_;
  const std::stop_token stop_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  scan::RacyRule racy_;
  base::UniqueFd local_root_;
  Calls calls_;
  SendContext context_;
  Report report_;
  Progress progress_;
  std::chrono::steady_clock::time_point told_{};

  bool remote_missing_ = false;  // a dry run of a directory that is not there
  std::vector<std::string> checked_;
  std::unordered_map<std::size_t, wire::PushSeen> differs_;  // by number in checked_
  std::uint64_t baseline_files_ = 0;
  std::size_t begins_open_ = 0;
  int begin_error_ = 0;
  bool remote_empty_ = false;
  std::int64_t remote_clock_ns_ = 0, local_clock_ns_ = 0;
  scan::ScanResult scanned_;
  std::vector<Action> drifted_;

  std::vector<Task> again_;
  // Renames and copies whose source was not what it was: the file is sent, and the source removed.
  std::vector<Action> deletes_later_, contents_later_;
  bool reopen_ = false;
  bool tree_done_ = false;
  int fatal_ = 0;
  index::Batch batch_;
  std::chrono::steady_clock::time_point committed_ = started_;
  base::Result<void> commit_result_;
};

}  // namespace nearbox::push
