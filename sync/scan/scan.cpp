// SPDX-License-Identifier: Apache-2.0
#include "sync/scan/scan.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <optional>
#include <pthread.h>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include <xxhash.h>

#include "client/base/unique_fd.h"
#include "sync/ignore/beneath.h"
#include "sync/ignore/rule_tree.h"
#include "sync/scan/file_content.h"
#include "sync/scan/links.h"
#include "sync/scan/path_table.h"
#include "sync/scan/walk.h"

namespace nearbox::scan {
namespace {

using base::UniqueFd;
using index::Entry;
using index::Type;

// The index in memory, as of the scan's beginning.
struct Baseline {
  PathTable entries;
  std::vector<Entry> values;
  std::vector<bool> seen;
  PathTable observed;
  std::vector<index::Observed> observed_values;
};

// `only` as in ScanOptions.
base::Result<Baseline> load(const index::Index& index, const std::vector<std::string>& only) {
  Baseline baseline;
  const auto add = [&](std::string_view path, const Entry& entry) {
    baseline.entries.add(path);
    baseline.values.push_back(entry);
  };
  base::Result<void> done;
  if (only.empty()) done = index.each(add);
  PathCover wanted;
  std::set<std::string> above;
  for (std::size_t i = 0; i < only.size() && done; ++i) {
    wanted.add(only[i]);
    for (auto slash = only[i].find('/'); slash != std::string::npos; slash = only[i].find('/', slash + 1)) {
      auto directory = only[i].substr(0, slash);
      if (!above.insert(directory).second) continue;
      auto entry = index.find(directory);
      if (!entry) return std::move(entry).error();
      if (*entry) add(directory, **entry);
    }
    done = index.each_at(only[i], add);
  }
  if (done) {
    done = index.each_observed([&](std::string_view path, const index::Observed& seen) {
      if (!only.empty() && !wanted.covers(path)) return;
      baseline.observed.add(path);
      baseline.observed_values.push_back(seen);
    });
  }
  if (!done) return std::move(done).error();
  baseline.entries.finish();
  baseline.observed.finish();
  baseline.seen.resize(baseline.values.size());
  return baseline;
}

// Whether stat(2) says that the content is as it was. The device is left out: its number changes when a
// machine boots or a volume is mounted anew, and inode, size and both times remain.
bool same_content(const index::StatInfo& a, const index::StatInfo& b) {
  return a.type == b.type && a.size == b.size && a.mtime_ns == b.mtime_ns && a.ctime_ns == b.ctime_ns &&
         a.inode == b.inode;
}

// A file or symlink that may have changed.
struct Job {
  const Node* node;
  std::optional<std::size_t> row;  // in the baseline
  std::optional<base::Result<Content>> content;
};

class Scan {
 public:
  Scan(int root, std::shared_ptr<const ignore::Rules> rules, const index::Index& index,
       const ScanOptions& options, std::stop_token stop)
      : root_(root),
        rules_(std::move(rules)),
        index_(index),
        options_(options),
        stop_(std::move(stop)),
        racy_(options.granularity_ns) {}

  base::Result<ScanResult> run() {
    if (auto done = look(); !done) return std::move(done).error();
    for (const auto& node : tree_.nodes) compare(node);
    hash();
    if (stop_.stop_requested()) return base::errno_error(ECANCELED, "scan");
    for (auto& job : jobs_) settle(job);
    if (auto done = find_missing(); !done) return std::move(done).error();
    note_link_loops(tree_, result_.changes);
    finish();
    return std::move(result_);
  }

 private:
  // Walks the tree while the index is read by another thread.
  base::Result<void> look() {
    if (auto done = narrow(); !done) return done;
    std::optional<base::Result<Baseline>> loaded;
    std::optional<base::Result<Tree>> walked;
    {
      const std::jthread loader([&] {
        ::pthread_setname_np(::pthread_self(), "scan-index");
        loaded.emplace(load(index_, options_.only));
      });
      walked.emplace(walk(root_, *rules_, scopes_.get(), options_, racy_, stop_));
    }
    if (!*loaded) return std::move(*loaded).error();
    if (!*walked) return std::move(*walked).error();
    baseline_ = **std::move(loaded);
    tree_ = **std::move(walked);
    return {};
  }

  // Makes the paths that are looked at ones whose directories are there, each once.
  base::Result<void> narrow() {
    auto& only = options_.only;
    for (auto& path : only) {
      while (!path.empty()) {
        const auto slash = path.rfind('/');
        const auto directory = slash == std::string::npos ? std::string() : path.substr(0, slash);
        if (ignore::open_beneath(root_, directory, O_PATH | O_DIRECTORY)) break;
        path = directory;
      }
    }
    std::sort(only.begin(), only.end());
    if (!only.empty() && only.front().empty()) only.clear();  // the root: everything
    PathCover seen;
    std::erase_if(only, [&](const std::string& path) {
      const bool covered = seen.covers(path);  // what covers it sorts before it
      seen.add(path);
      return covered;
    });
    return only.empty() ? base::Result<void>() : need_scopes();
  }

  base::Result<void> need_scopes() {
    if (scopes_) return {};
    auto opened = ignore::RuleTree::over(rules_);
    if (!opened) return std::move(opened).error();
    scopes_ = *std::move(opened);
    return {};
  }

  void compare(const Node& node) {
    count(node.stat);
    const auto path = tree_.path(node);
    const auto row = baseline_.entries.find(path);
    if (row) baseline_.seen[*row] = true;
    const Entry* before = row ? &baseline_.values[*row] : nullptr;
    if (node.stat.type == Type::kDirectory) {
      if (before == nullptr || before->stat.type != Type::kDirectory) {
        Entry now;
        now.stat = node.stat;
        change(before == nullptr ? ChangeKind::kAdded : ChangeKind::kModified, path, now, before);
      } else if (before->stat.mode != node.stat.mode) {
        Entry now = *before;
        now.stat = node.stat;
        change(ChangeKind::kMode, path, now, before);
      }
      return;
    }
    const bool known = before != nullptr && options_.compare == Compare::kAuto && !before->racy &&
                       same_content(before->stat, node.stat);
    if (!known) {
      if (before == nullptr && moved_here(path, node)) return;
      if (!observed_before(path, node, before)) jobs_.push_back({&node, row, std::nullopt});
    } else if (before->stat.mode != node.stat.mode) {
      Entry now = *before;  // a chmod moves ctime: this is a file system that does not
      now.stat = node.stat;
      change(ChangeKind::kMode, path, now, before);
    }
  }

  // Whether the baseline has this very file under another path: below a directory that was renamed nothing
  // but paths changes. (A file that is renamed itself gets another ctime, and is read.)
  bool moved_here(std::string_view path, const Node& node) {
    if (options_.compare == Compare::kContent || node.stat.type != Type::kFile) return false;
    if (by_inode_.empty()) {
      by_inode_.reserve(baseline_.values.size());
      for (std::size_t row = 0; row < baseline_.values.size(); ++row) {
        if (baseline_.values[row].stat.type == Type::kFile)
          by_inode_.emplace(baseline_.values[row].stat.inode, row);
      }
    }
    const auto found = by_inode_.find(node.stat.inode);
    if (found == by_inode_.end()) return false;
    const auto& there = baseline_.values[found->second];
    if (there.racy || there.stat.device != node.stat.device || !same_content(there.stat, node.stat))
      return false;
    Content content;
    content.stat = node.stat;
    content.digest = there.digest;
    decide(path, content, nullptr);
    return true;
  }

  // Whether an earlier scan read this very state, which waits to be pushed.
  bool observed_before(std::string_view path, const Node& node, const Entry* before) {
    if (options_.compare == Compare::kContent || node.stat.type != Type::kFile) return false;
    const auto found = baseline_.observed.find(path);
    if (!found) return false;
    const auto& seen = baseline_.observed_values[*found];
    if (!same_content(seen.stat, node.stat)) return false;
    Content content;
    content.stat = node.stat;
    content.digest = seen.digest;
    decide(path, content, before);
    return true;
  }

  void count(const index::StatInfo& stat) {
    auto& counts = result_.counts;
    if (stat.type == Type::kDirectory) ++counts.directories;
    if (stat.type == Type::kSymlink) ++counts.symlinks;
    if (stat.type != Type::kFile) return;
    ++counts.files;
    counts.bytes += stat.size;
  }

  // Reads what may have changed. Each thread takes the next file that none has taken.
  void hash() {
    if (jobs_.empty()) return;
    unsigned threads =
        options_.hash_threads != 0 ? options_.hash_threads : std::thread::hardware_concurrency();
    threads = std::clamp(threads, 1U, kMaxHashThreads);
    threads = static_cast<unsigned>(std::min<std::size_t>(threads, jobs_.size()));
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (auto i = next.fetch_add(1); i < jobs_.size() && !stop_.stop_requested(); i = next.fetch_add(1)) {
        const Node& node = *jobs_[i].node;
        jobs_[i].content.emplace(
            read_content(root_, tree_.path(node), node.stat.type, racy_, options_.hashed_bytes, stop_));
      }
    };
    std::vector<std::jthread> pool;
    for (unsigned i = 1; i < threads; ++i) {
      pool.emplace_back([&] {
        ::pthread_setname_np(::pthread_self(), "scan-hash");
        work();
      });
    }
    work();
  }

  void settle(Job& job) {
    const auto path = tree_.path(*job.node);
    const Entry* before = job.row ? &baseline_.values[*job.row] : nullptr;
    if (!*job.content) {
      const int error = job.content->error().as_errno();
      if (error == ENOENT) {  // deleted since it was listed
        if (before != nullptr) change(ChangeKind::kDeleted, path, *before, before);
      } else {
        const bool unstable = error == ESTALE || error == ELOOP || error == ENOTDIR;
        tree_.report(error == EAGAIN ? ProblemKind::kChanging
                     : unstable      ? ProblemKind::kUnstable
                                     : ProblemKind::kUnreadable,
                     path, error);
      }
      return;
    }
    const Content& content = **job.content;
    if (content.stat.type == Type::kFile) {
      ++result_.counts.hashed_files;
      result_.counts.hashed_bytes += content.stat.size;
    }
    decide(path, content, before);
  }

  // Compares what was read with the baseline.
  void decide(std::string_view path, const Content& content, const Entry* before) {
    Entry now;
    now.stat = content.stat;
    now.digest = content.digest;
    now.racy = content.racy;
    if (before != nullptr) now.remote_version = before->remote_version;
    const bool equal =
        before != nullptr && before->stat.type == now.stat.type && before->digest == now.digest;
    if (equal) {
      const bool same_mode = before->stat.mode == now.stat.mode || now.stat.type == Type::kSymlink;
      if (same_mode) {
        if (now != *before) result_.learnt.put(path, now);
        return;
      }
      change(ChangeKind::kMode, path, now, before);
    } else {
      change(before == nullptr ? ChangeKind::kAdded : ChangeKind::kModified, path, now, before,
             content.target);
    }
    const bool large = now.stat.type == Type::kFile && now.stat.size >= kMinObservedBytes;
    if (large && !now.racy) result_.learnt.observe(path, {now.stat, now.digest});
  }

  void change(ChangeKind kind, std::string_view path, const Entry& now, const Entry* before,
              const std::string& target = {}) {
    result_.changes.push_back({kind, std::string(path), now, before == nullptr ? Entry{} : *before, target});
  }

  // What the baseline has and the walk did not see: deleted, unless a rule takes it now or nobody could look.
  base::Result<void> find_missing() {
    PathCover unknown;
    for (const auto& path : tree_.unknown) unknown.add(path);
    for (std::size_t i = 0; i < baseline_.values.size(); ++i) {
      if (baseline_.seen[i]) continue;
      const auto path = baseline_.entries.path(i);
      if (unknown.covers(path)) continue;
      if (auto done = need_scopes(); !done) return done;
      const Entry& before = baseline_.values[i];
      const bool directory = before.stat.type == Type::kDirectory;
      const bool synced = scopes_->placement(path, directory) == ignore::Placement::kSynced;
      change(synced ? ChangeKind::kDeleted : ChangeKind::kLeftOut, path, before, &before);
    }
    return {};
  }

  void finish() {
    const auto by_path = [](const auto& a, const auto& b) { return a.path < b.path; };
    std::sort(result_.changes.begin(), result_.changes.end(), by_path);
    std::stable_sort(tree_.problems.begin(), tree_.problems.end(), by_path);
    std::sort(tree_.left_out.begin(), tree_.left_out.end(), by_path);
    // Digests kept for files that are gone, or that were pushed by now, are of no use.
    for (std::size_t i = 0; i < baseline_.observed_values.size(); ++i) {
      const auto path = baseline_.observed.path(i);
      const auto found = std::lower_bound(result_.changes.begin(), result_.changes.end(), path,
                                          [](const Change& c, std::string_view p) { return c.path < p; });
      const bool wanted = found != result_.changes.end() && found->path == path &&
                          found->kind != ChangeKind::kDeleted && found->kind != ChangeKind::kLeftOut;
      if (!wanted) result_.learnt.forget(path);
    }
    result_.problems = std::move(tree_.problems);
    result_.left_out = std::move(tree_.left_out);
    result_.counts.problems = tree_.problem_count;
    result_.counts.left_out = tree_.left_out_count;
  }

  int root_;
  std::shared_ptr<const ignore::Rules> rules_;
  const index::Index& index_;
  ScanOptions options_;
  std::stop_token stop_;
  RacyRule racy_;
  std::unique_ptr<ignore::RuleTree> scopes_;
  Baseline baseline_;
  Tree tree_;
  std::vector<Job> jobs_;
  std::unordered_map<std::uint64_t, std::size_t> by_inode_;  // files of the baseline; made when it is needed
  ScanResult result_;
};

}  // namespace

std::string_view name_of(ProblemKind kind) {
  switch (kind) {
    case ProblemKind::kUnreadable:
      return "unreadable";
    case ProblemKind::kChanging:
      return "changing";
    case ProblemKind::kUnstable:
      return "unstable";
    case ProblemKind::kSpecial:
      return "special";
    case ProblemKind::kOtherMount:
      return "other-mount";
    case ProblemKind::kPathTooLong:
      return "path-too-long";
    case ProblemKind::kTooLarge:
      return "too-large";
    case ProblemKind::kRules:
      return "rules";
    case ProblemKind::kSymlinkSkipped:
      return "symlink";
    case ProblemKind::kNameNotUtf8:
      return "name-not-utf8";
    case ProblemKind::kSymlinkLoop:
      return "symlink-loop";
  }
  return "unknown";
}

base::Result<ScanResult> scan(const std::shared_ptr<const ignore::Rules>& rules, const index::Index& baseline,
                              const ScanOptions& options, std::stop_token stop) {
  const UniqueFd root(::open(rules->root().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root) return base::last_errno("open " + rules->root());
  return Scan(root.get(), rules, baseline, options, std::move(stop)).run();
}

}  // namespace nearbox::scan
