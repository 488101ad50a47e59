// SPDX-License-Identifier: Apache-2.0
#include "sync/push/push.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <fcntl.h>
#include <sys/stat.h>
#include <unordered_set>

#include "client/api/error_code.h"
#include "client/wire/pack.h"
#include "sync/ignore/beneath.h"
#include "sync/push/push_run.h"

namespace nearbox::push {
namespace {

using index::Type;
using scan::Change;
using scan::ChangeKind;

constexpr int kListLevel = 3;

std::int64_t wall_clock_ns() {
  timespec now{};
  (void)::clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

template <class M>
wire::PushPacked packed(std::uint32_t root, const M& message, int level) {
  const auto raw = wire::encode(message);
  return {root, static_cast<std::uint32_t>(raw.size()), wire::pack(raw, level)};
}

base::Error failed(int error, std::string context) { return base::errno_error(error, std::move(context)); }

}  // namespace

Run::Run(api::AgentLink& link, const std::string& remote, std::shared_ptr<const ignore::Rules> rules,
         index::Index& baseline, const Options& options, std::stop_token stop)
    : link_(link),
      remote_(remote),
      rules_(std::move(rules)),
      index_(baseline),
      options_(options),
      stop_(stop),
      racy_(options.scan.granularity_ns),
      calls_(link_),
      context_{calls_, local_root_, racy_, {0}, 0, {}, {0}, stop} {}

base::Result<Report> Run::run() {
  local_root_.reset(::open(rules_->root().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!local_root_) return base::last_errno("open " + rules_->root());
  report_.dry_run = options_.dry_run;
  for (const auto step : {&Run::begin, &Run::scan, &Run::wait_begun}) {
    if (auto done = (this->*step)(); !done) return std::move(done).error();
  }
  if (auto fine = check_empty(); !fine) return std::move(fine).error();
  if (auto done = find_drift(); !done) return std::move(done).error();
  if (auto done = compare_added(); !done) return std::move(done).error();
  auto sources = find_sources();
  if (!sources) return std::move(sources).error();
  auto plan = make_plan(std::move(scanned_.changes), *sources, options_);
  for (auto& action : drifted_) {
    const bool directory = action.now.stat.type == Type::kDirectory;
    (directory ? plan.directories : plan.contents).push_back(std::move(action));
  }
  if (options_.deletes == Deletes::kMirror && !remote_empty_) {
    if (auto done = find_extra(plan); !done) return std::move(done).error();
  }
  if (options_.dry_run) {
    report_plan(plan);
  } else if (auto done = execute(std::move(plan)); !done) {
    (void)commit(true);
    return std::move(done).error();
  }
  const auto lost = report_.files_failed + report_.files_remote_changed;
  report_.files_current = report_.files_current > lost ? report_.files_current - lost : 0;
  report_.bytes_sent = calls_.bytes_out();
  report_.bytes_received = calls_.bytes_in();
  report_.requests = calls_.made();
  report_.duration_ms = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - started_)
          .count());
  return std::move(report_);
}

// Opens the directory and asks whether everything that was placed is as it was, while the scan runs.
base::Result<void> Run::begin() {
  wire::PushCheckList list;
  std::size_t raw = 0;
  std::size_t first = 0;
  bool sent = false;
  local_clock_ns_ = wall_clock_ns();
  const auto send = [&] {
    send_begin(list, first);
    first = checked_.size();
    list = {};
    raw = 0;
    sent = true;
  };
  auto read = index_.each([&](std::string_view path, const index::Entry& entry) {
    if (entry.stat.type == Type::kFile) ++baseline_files_;
    list.paths.emplace_back(path);
    wire::Writer(list.stamps).num(static_cast<std::uint32_t>(entry.remote_version));
    checked_.emplace_back(path);
    raw += path.size() + 2 * wire::kPushCheckBytes;
    if (raw >= kListBytes || list.paths.size() >= wire::kMaxPushChecks) send();
  });
  if (!read) return read;
  report_.first = checked_.empty();
  if (!list.paths.empty() || !sent) send();
  return {};
}

void Run::send_begin(const wire::PushCheckList& list, std::size_t first) {
  wire::PushBegin message{remote_, !options_.dry_run, {}};
  if (!list.paths.empty()) message.checks = packed(0, list, kListLevel);
  ++begins_open_;
  const bool sent = calls_.send(
      wire::Method::kPushBegin, wire::encode(message), [this, first](int error, const wire::Bytes& payload) {
        --begins_open_;
        const auto reply = error == 0 ? wire::decode<wire::PushBeginReply>(payload) : std::nullopt;
        if (!reply) {
          begin_error_ = error == 0 ? EPROTO : error;
          return;
        }
        context_.root = reply->root;
        report_.remote_path = reply->path;
        remote_empty_ = reply->empty;
        remote_clock_ns_ = reply->realtime_ns;
        context_.stages = reply->stages;
        for (const auto& one : reply->differs) differs_[first + one.index] = one.seen;
      });
  if (!sent) begin_error_ = ECANCELED;
}

// The agent is another one now.
base::Result<void> Run::open_again() {
  send_begin({}, 0);
  return wait_begun();
}

base::Result<void> Run::scan() {
  auto options = options_.scan;
  auto scanned = scan::scan(rules_, index_, options, stop_);
  if (!scanned) return std::move(scanned).error();
  scanned_ = *std::move(scanned);
  take_scan(
      scanned_,
      [this](const std::string& path) {
        const auto fd = ignore::open_beneath(local_root_.get(), path, O_PATH);
        struct stat st {};
        return fd && ::fstat(fd->get(), &st) == 0 && S_ISREG(st.st_mode);
      },
      report_);
  report_.files_current = report_.total_files;
  if (!scanned_.learnt.empty()) return index_.apply(scanned_.learnt);
  return {};
}

base::Result<void> Run::wait_begun() {
  while (begins_open_ > 0) {
    if (stop_.stop_requested()) return failed(ECANCELED, "sync");
    calls_.step(std::chrono::milliseconds(100));
  }
  if (begin_error_ == ENOENT && options_.dry_run) {
    remote_empty_ = true;
    report_.remote_path = remote_;
    differs_.clear();
    return {};
  }
  if (begin_error_ != 0) return failed(begin_error_, "open " + remote_ + " in the sandbox");
  // Half a round trip and the scan lie between the two clocks: only much is a difference.
  const auto skew = remote_clock_ns_ - local_clock_ns_;
  const bool far = skew > 30 * kSkewNs || skew < -kSkewNs;
  if (far && !report_.first) context_.skew_ns = skew;
  return {};
}

base::Result<void> Run::check_empty() const {
  const auto& counts = scanned_.counts;
  if (counts.files > 0 || baseline_files_ < kMinEmptyFiles || options_.deletes == Deletes::kNone) return {};
  const auto gone = static_cast<std::uint64_t>(
      std::count_if(scanned_.changes.begin(), scanned_.changes.end(), [](const Change& change) {
        return change.kind == ChangeKind::kDeleted && change.before.stat.type == Type::kFile;
      }));
  if (gone < kMinEmptyFiles) return {};
  return api::fill_error(api::ErrorCode::kSyncHaltedEmpty, {{"SIDE", "local"}, {"N", std::to_string(gone)}});
}

// What changed in the sandbox alone.
base::Result<void> Run::find_drift() {
  std::vector<Change> others;
  const auto changed = [this](const std::string& path) {
    const auto found = std::lower_bound(scanned_.changes.begin(), scanned_.changes.end(), path,
                                        [](const Change& c, const std::string& p) { return c.path < p; });
    return found != scanned_.changes.end() && found->path == path;
  };
  std::vector<std::size_t> numbers;
  for (const auto& [number, seen] : differs_) {
    if (number < checked_.size()) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  for (const auto number : numbers) {
    const auto seen = differs_[number];
    const auto& path = checked_[number];
    if (changed(path)) continue;
    auto entry = index_.find(path);
    if (!entry) return std::move(entry).error();
    if (!*entry) continue;
    Change change{ChangeKind::kAdded, path, **entry, {}, {}};
    if (seen == wire::PushSeen::kMissing) {
      Action action;
      action.path = path;
      action.now = **entry;
      action.conflict = conflict_of(options_.conflicts);
      action.kind = action.now.stat.type == Type::kDirectory ? wire::PushKind::kDirectory
                    : action.now.stat.type == Type::kSymlink ? wire::PushKind::kSymlink
                                                             : wire::PushKind::kFile;
      if (action.kind == wire::PushKind::kSymlink) action.source = read_link(path);
      drifted_.push_back(std::move(action));
    } else if (seen == wire::PushSeen::kNoAccess) {
      fail_remote(report_, path, EACCES, change.now.stat.type == Type::kFile);
    } else {
      others.push_back(std::move(change));
    }
  }
  return others.empty() ? base::Result<void>() : compare_drift(std::move(others));
}

std::string Run::read_link(const std::string& path) const {
  const auto fd = ignore::open_beneath(local_root_.get(), path, O_PATH);
  if (!fd) return {};
  std::string target(index::kMaxPathBytes + 1, '\0');
  const ssize_t n = ::readlinkat(fd->get(), "", target.data(), target.size());
  target.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return target;
}

// By content: touched files have only other stamps.
base::Result<void> Run::compare_drift(std::vector<Change> others) {
  std::vector<const Change*> items;
  for (const auto& change : others) items.push_back(&change);
  auto results = compare(items);
  if (!results) return std::move(results).error();
  for (std::size_t i = 0; i < others.size(); ++i) {
    auto& change = others[i];
    const auto& result = (*results)[i];
    if (result.seen == wire::PushSeen::kSame || result.seen == wire::PushSeen::kMode) {
      change.now.remote_version = result.stamp;
      batch_.put(change.path, change.now);
      continue;
    }
    const bool file = change.now.stat.type == Type::kFile;
    const bool ours = options_.deletes == Deletes::kMirror || options_.conflicts == Conflicts::kPreferLocal;
    if (result.seen != wire::PushSeen::kMissing && (!ours || change.now.stat.type == Type::kDirectory)) {
      report_.remote_changed.add(change.path);
      if (file) ++report_.files_remote_changed;
      continue;
    }
    Action action;
    action.path = change.path;
    action.now = change.now;
    action.expect = wire::PushExpect::kAny;
    action.conflict = wire::PushConflict::kOverwrite;
    action.kind = file ? wire::PushKind::kFile : wire::PushKind::kSymlink;
    if (!file) action.source = read_link(change.path);
    drifted_.push_back(std::move(action));
  }
  return {};
}

// Without a baseline the sandbox may have it all already.
base::Result<void> Run::compare_added() {
  if (!report_.first || remote_empty_ || scanned_.changes.empty()) return {};
  std::vector<const Change*> items;
  for (const auto& change : scanned_.changes) {
    if (change.kind == ChangeKind::kAdded) items.push_back(&change);
  }
  auto results = compare(items);
  if (!results) return std::move(results).error();
  std::unordered_set<const Change*> same;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if ((*results)[i].seen != wire::PushSeen::kSame) continue;
    auto entry = items[i]->now;
    entry.remote_version = (*results)[i].stamp;
    batch_.put(items[i]->path, entry);
    same.insert(items[i]);
  }
  if (same.empty()) return {};
  std::vector<Change> left;
  for (auto& change : scanned_.changes) {
    if (!same.contains(&change)) left.push_back(std::move(change));
  }
  scanned_.changes = std::move(left);
  return commit(true);
}

base::Result<std::vector<wire::PushCompareResult>> Run::compare(const std::vector<const Change*>& items) {
  std::vector<wire::PushCompareResult> results(items.size());
  int failure = 0;
  std::size_t open = 0;
  wire::PushCompareList list;
  std::size_t first = 0;
  std::size_t raw = 0;
  const auto send = [&](std::size_t next) {
    ++open;
    calls_.send(wire::Method::kPushCompare, wire::encode(packed(context_.root.load(), list, kListLevel)),
                [&, first, count = list.items.size()](int error, const wire::Bytes& payload) {
                  --open;
                  const auto reply =
                      error == 0 ? wire::decode<wire::PushCompareReply>(payload) : std::nullopt;
                  if (!reply || reply->results.size() != count) {
                    failure = error == 0 ? EPROTO : error;
                    return;
                  }
                  std::copy(reply->results.begin(), reply->results.end(),
                            results.begin() + static_cast<std::ptrdiff_t>(first));
                });
    first = next;
    list.items.clear();
    raw = 0;
  };
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto& now = items[i]->now;
    wire::PushCompareItem item{items[i]->path, wire::PushType::kFile, now.stat.mode, now.stat.size,
                               wire_digest(now.digest)};
    if (now.stat.type == Type::kDirectory) item.type = wire::PushType::kDirectory;
    if (now.stat.type == Type::kSymlink) item.type = wire::PushType::kSymlink;
    raw += item.path.size() + 48;
    list.items.push_back(std::move(item));
    if (raw >= kListBytes || list.items.size() >= wire::kMaxPushChecks) send(i + 1);
  }
  if (!list.items.empty()) send(items.size());
  const auto limit = std::chrono::steady_clock::now() + kCallDeadline;
  // On the ways out before all have answered the push ends, and no answer is run any more.
  while (open > 0) {
    if (stop_.stop_requested()) return failed(ECANCELED, "sync");
    if (std::chrono::steady_clock::now() > limit) return failed(ETIMEDOUT, "compare");
    calls_.step(std::chrono::milliseconds(100));
  }
  if (failure != 0) return failed(failure, "compare");
  return results;
}

base::Result<Sources> Run::find_sources() {
  Sources sources;
  const auto wanted = wanted_sources(scanned_.changes);
  if (wanted.empty() || checked_.empty()) return sources;
  const std::unordered_set<std::string> keys(wanted.begin(), wanted.end());
  std::unordered_set<std::string_view> changed;
  for (const auto& change : scanned_.changes) changed.insert(change.path);
  auto read = index_.each([&](std::string_view path, const index::Entry& entry) {
    if (entry.stat.type != Type::kFile || changed.contains(path)) return;
    auto key = key_of(entry.digest);
    if (keys.contains(key)) sources.emplace(std::move(key), path);
  });
  if (!read) return std::move(read).error();
  return sources;
}

base::Result<Report> push(api::AgentLink& link, const std::string& remote,
                          const std::shared_ptr<const ignore::Rules>& rules, index::Index& baseline,
                          const Options& options, std::stop_token stop) {
  return Run(link, remote, rules, baseline, options, std::move(stop)).run();
}

}  // namespace nearbox::push
