// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "tools/sandbox_server/dir_watcher.h"

namespace nearbox::sandbox_server {

// Watchers that are asked for their events. Each has an inotify instance and a thread.
inline constexpr std::size_t kMaxPolledWatchers = 64;
// Events of one watcher that nobody has asked for yet; with more, the watcher is broken.
inline constexpr std::size_t kMaxHeldEvents = 65536;

// An event as the wire has it.
using EventJson = std::function<nlohmann::json(const WatchEvent&)>;

// One watcher that collects events between two questions.
//
// Owns:    the watches and a thread that takes events while they are fresh: a new directory must be
//          watched at once, and what an event says of its file must still be true.
// Threads: any.
class PolledWatcher {
 public:
  PolledWatcher(DirWatcher watcher, EventJson to_json);
  ~PolledWatcher();
  PolledWatcher(const PolledWatcher&) = delete;
  PolledWatcher& operator=(const PolledWatcher&) = delete;
  // Takes the events since the last call. The error of a broken watcher stays.
  base::Result<std::vector<nlohmann::json>> drain() EXCLUDES(mu_);

 private:
  void run() noexcept EXCLUDES(mu_);
  bool take_some() EXCLUDES(mu_);

  DirWatcher watcher_;  // the thread's
  const EventJson to_json_;
  base::UniqueFd stop_;
  base::Mutex mu_;  // rank: leaf
  std::vector<nlohmann::json> events_ GUARDED_BY(mu_);
  base::Result<void> state_ GUARDED_BY(mu_);
  std::jthread thread_;  // last: it uses the others
};

// The polled watchers of an envd, by id. They live until they are removed, as with envd itself.
//
// Threads: any; mu_ is not held while a watcher ends.
class WatchTable {
 public:
  explicit WatchTable(std::size_t limit = kMaxPolledWatchers) : limit_(limit) {}
  // EMFILE: at the limit.
  base::Result<std::string> add(DirWatcher watcher, EventJson to_json) EXCLUDES(mu_);
  std::shared_ptr<PolledWatcher> find(const std::string& id) EXCLUDES(mu_);
  bool remove(const std::string& id) EXCLUDES(mu_);

 private:
  const std::size_t limit_;
  base::Mutex mu_;  // rank: leaf
  std::map<std::string, std::shared_ptr<PolledWatcher>> table_ GUARDED_BY(mu_);
};

}  // namespace nearbox::sandbox_server
