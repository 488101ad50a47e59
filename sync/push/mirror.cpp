// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>

#include "client/wire/paths.h"
#include "sync/ignore/beneath.h"
#include "sync/ignore/rule_tree.h"
#include "sync/push/push_run.h"

// What is in the sandbox and would be synced, and is not here: for Deletes::kMirror.
namespace nearbox::push {
namespace {

struct Listed {
  std::string path;
  bool directory = false;
};

// Puts the records of a listing together.
class Records {
 public:
  explicit Records(const std::vector<std::string>& dirs) : dirs_(dirs) {}

  void add(wire::ByteView bytes) {
    partial_.insert(partial_.end(), bytes.begin(), bytes.end());
    std::size_t at = 0;
    while (partial_.size() - at >= sizeof(std::uint32_t)) {
      std::uint32_t length = 0;
      std::memcpy(&length, partial_.data() + at, sizeof length);
      broken_ = broken_ || length > wire::kMaxPath || found_.size() >= scan::kMaxNodes;
      if (broken_ || partial_.size() - at - sizeof length < length) break;
      take(wire::ByteView(partial_).subspan(at + sizeof length, length));
      at += sizeof length + length;
    }
    partial_.erase(partial_.begin(), partial_.begin() + static_cast<std::ptrdiff_t>(at));
    if (broken_) partial_.clear();
  }
  bool broken() const { return broken_ || !partial_.empty(); }
  std::vector<Listed> take_found() { return std::move(found_); }

 private:
  void take(wire::ByteView bytes) {
    auto record = wire::decode<wire::PushListed>(bytes);
    if (!record || record->dir >= dirs_.size() || !wire::valid_name(record->name)) {
      broken_ = true;
      return;
    }
    const auto& dir = dirs_[record->dir];
    found_.push_back(
        {dir.empty() ? record->name : dir + "/" + record->name, record->type == wire::PushType::kDirectory});
  }

  const std::vector<std::string>& dirs_;
  wire::Bytes partial_;
  std::vector<Listed> found_;
  bool broken_ = false;
};

}  // namespace

base::Result<void> Run::find_extra(Plan& plan) {
  if (report_.failures.count > 0) {
    report_.warnings.emplace_back(
        "nothing beside what a sync placed was removed: not everything here could be read");
    return {};
  }
  auto rules = ignore::RuleTree::over(rules_);
  if (!rules) return std::move(rules).error();
  const auto here = [this](const std::string& path) {
    return static_cast<bool>(ignore::open_beneath(local_root_.get(), path, O_PATH));
  };
  std::vector<std::string> dirs = {""};
  while (!dirs.empty()) {
    const auto count = std::min(dirs.size(), wire::kMaxPushDirs);
    const wire::PushList call{context_.root.load(),
                              {dirs.end() - static_cast<std::ptrdiff_t>(count), dirs.end()}};
    dirs.resize(dirs.size() - count);
    Records records(call.dirs);
    const auto reply = calls_.sync(wire::Method::kPushList, wire::encode(call),
                                   [&](wire::ByteView bytes) { records.add(bytes); });
    if (reply.error != 0) return base::errno_error(reply.error, "list the sandbox's directory");
    if (records.broken()) return base::errno_error(EPROTO, "the agent's listing");
    for (auto& one : records.take_found()) {
      if (stop_.stop_requested()) return base::errno_error(ECANCELED, "sync");
      if ((*rules)->placement(one.path, one.directory) != ignore::Placement::kSynced) continue;
      if (one.directory) dirs.push_back(one.path);
      if (here(one.path)) continue;
      auto tracked = index_.find(one.path);
      if (!tracked) return std::move(tracked).error();
      if (*tracked) continue;  // the plan has it
      Action action;
      action.path = one.path;
      action.kind = one.directory ? wire::PushKind::kRemoveDir : wire::PushKind::kDelete;
      action.expect = wire::PushExpect::kAny;
      (one.directory ? plan.remove_dirs : plan.deletes).push_back(std::move(action));
    }
  }
  std::sort(plan.remove_dirs.begin(), plan.remove_dirs.end(),
            [](const Action& a, const Action& b) { return a.path > b.path; });
  return {};
}

}  // namespace nearbox::push
