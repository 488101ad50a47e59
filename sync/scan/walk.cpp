// SPDX-License-Identifier: Apache-2.0
#include "sync/scan/walk.h"

#include <cerrno>
#include <cstddef>
#include <dirent.h>
#include <fcntl.h>
#include <map>
#include <optional>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "client/base/unique_fd.h"
#include "sync/ignore/beneath.h"

namespace nearbox::scan {
namespace {

using base::UniqueFd;

constexpr std::size_t kListBytes = 64 * 1024;  // of one getdents64

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const std::size_t more = c < 0x80                ? 0
                             : c >= 0xc2 && c < 0xe0 ? 1
                             : c >= 0xe0 && c < 0xf0 ? 2
                             : c >= 0xf0 && c < 0xf5 ? 3
                                                     : 9;
    if (more == 9 || i + more >= text.size()) return false;
    for (std::size_t k = 1; k <= more; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) return false;
    }
    const auto next = more > 0 ? static_cast<unsigned char>(text[i + 1]) : 0U;
    // Overlong forms, surrogates, and what lies past the last code point.
    if ((c == 0xe0 && next < 0xa0) || (c == 0xed && next > 0x9f) || (c == 0xf0 && next < 0x90) ||
        (c == 0xf4 && next > 0x8f)) {
      return false;
    }
    i += more + 1;
  }
  return true;
}

// A directory that is on the way to something synced, and is told only when that is found.
struct Ancestor {
  std::shared_ptr<Ancestor> parent;
  std::string path;
  index::StatInfo stat;
  bool told = false;
};

struct Pending {
  std::string path;
  ignore::ScopePtr parent;  // of the directory that holds it
  std::shared_ptr<Ancestor> holder;
  bool synced = true;
};

struct Listed {
  std::string name;
  unsigned char type;
};

class Walker {
 public:
  Walker(int root, const ignore::Rules& rules, ignore::RuleTree* scopes, const ScanOptions& options,
         const RacyRule& racy, const std::stop_token& stop)
      : root_(root),
        rules_(rules),
        scopes_(scopes),
        options_(options),
        racy_(racy),
        stop_(stop),
        probe_(ignore::credential_probe(root)),
        list_(new char[kListBytes]) {}

  base::Result<Tree> run() {
    for (const auto& text : rules_.problems()) tree_.report(ProblemKind::kRules, text);
    for (const auto& path : options_.only) {
      if (auto done = begin_at(path); !done) return std::move(done).error();
    }
    if (options_.only.empty()) {
      if (auto done = begin(); !done) return std::move(done).error();
    }
    while (!pending_.empty()) {
      if (stop_.stop_requested()) return base::errno_error(ECANCELED, "scan");
      Pending next = std::move(pending_.back());
      pending_.pop_back();
      if (auto done = visit(next); !done) return std::move(done).error();
    }
    return std::move(tree_);
  }

 private:
  base::Result<void> begin() {
    const UniqueFd top(::openat(root_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!top) return base::last_errno("open " + rules_.root());
    auto listed = list(top.get());
    if (!listed) return std::move(listed).error().during("list " + rules_.root());
    return take_all("", top.get(), rules_.root_scope(), nullptr, *listed);
  }

  // Begins at one path: the directories it lies in first.
  base::Result<void> begin_at(const std::string& path) {
    std::shared_ptr<Ancestor> holder;
    for (auto slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
      const std::string above = path.substr(0, slash);
      const auto outer = above.rfind('/');
      const auto scope = scopes_->scope_of(outer == std::string::npos ? "" : above.substr(0, outer));
      const auto decision = rules_.decide(*scope, above, true, probe_);
      if (!decision.synced() && !decision.enter) {
        leave_out(above, true, decision);
        return {};
      }
      const auto dir = ignore::open_beneath(root_, above, O_PATH | O_DIRECTORY);
      struct stat st {};
      if (!dir || ::fstat(dir->get(), &st) != 0) {
        lose(ProblemKind::kUnstable, path, dir ? errno : dir.error().as_errno());
        return {};
      }
      auto& known = ancestors_[above];  // of another path that lies there as well
      if (!known) known = std::make_shared<Ancestor>(Ancestor{holder, above, stat_info(st, racy_), false});
      holder = known;
      if (decision.synced()) tell(holder);
    }
    const auto slash = path.rfind('/');
    const std::string directory = slash == std::string::npos ? "" : path.substr(0, slash);
    const auto dir = ignore::open_beneath(root_, directory, O_PATH | O_DIRECTORY);
    if (!dir) {
      lose(ProblemKind::kUnstable, path, dir.error().as_errno());
      return {};
    }
    take(path, {slash == std::string::npos ? path : path.substr(slash + 1), DT_UNKNOWN}, dir->get(),
         scopes_->scope_of(directory), holder);
    return {};
  }

  void leave_out(const std::string& path, bool directory, const ignore::Decision& decision) {
    ++tree_.left_out_count;
    if (tree_.left_out.size() < kMaxReported) tree_.left_out.push_back({path, directory, decision.kind});
  }

  base::Result<std::vector<Listed>> list(int dir) {
    std::vector<Listed> out;
    while (true) {
      const ssize_t n = ::getdents64(dir, list_.get(), kListBytes);
      if (n < 0) return base::last_errno("list");
      if (n == 0) return out;
      for (ssize_t at = 0; at < n;) {
        const auto* record = reinterpret_cast<const dirent64*>(list_.get() + at);  // aligned by the kernel
        at += record->d_reclen;
        const std::string_view name = record->d_name;
        if (name != "." && name != "..") out.push_back({std::string(name), record->d_type});
      }
      if (tree_.nodes.size() + out.size() > kMaxNodes)
        return base::errno_error(EFBIG, "scan: too many paths");
    }
  }

  // What is there cannot be told: the baseline's idea of it stays.
  void lose(ProblemKind kind, const std::string& path, int error) {
    tree_.report(kind, path, error);
    tree_.unknown.push_back(path);
  }

  base::Result<void> visit(const Pending& next) {
    auto dir = ignore::open_beneath(root_, next.path, O_RDONLY | O_DIRECTORY);
    if (!dir) {
      const int error = dir.error().as_errno();
      if (error == ENOENT) return {};  // gone since its parent was listed
      const bool swapped = error == ELOOP || error == ENOTDIR;
      lose(swapped          ? ProblemKind::kUnstable
           : error == EXDEV ? ProblemKind::kOtherMount
                            : ProblemKind::kUnreadable,
           next.path, error);
      return {};
    }
    struct stat st {};
    if (::fstat(dir->get(), &st) != 0) {
      lose(ProblemKind::kUnreadable, next.path, errno);
      return {};
    }
    auto self = std::make_shared<Ancestor>(Ancestor{next.holder, next.path, stat_info(st, racy_), false});
    if (next.synced) tell(self);
    auto listed = list(dir->get());
    if (!listed) {
      if (listed.error().as_errno() == EFBIG) return std::move(listed).error();
      lose(ProblemKind::kUnreadable, next.path, listed.error().as_errno());
      return {};
    }
    const auto scope = enter(next, dir->get(), *listed);
    return take_all(next.path, dir->get(), scope, self, *listed);
  }

  ignore::ScopePtr enter(const Pending& next, int dir, const std::vector<Listed>& listed) {
    ignore::RuleFilesFound found{false, false, false};
    for (const auto& one : listed) {
      if (one.name.front() != '.') continue;
      found.gitignore = found.gitignore || one.name == ".gitignore";
      found.nearboxignore = found.nearboxignore || one.name == ".nearboxignore";
      found.dot_git = found.dot_git || one.name == ".git";
    }
    std::vector<std::string> problems;
    auto scope = rules_.enter(next.parent, next.path, dir, found, problems);
    for (const auto& text : problems) tree_.report(ProblemKind::kRules, text);
    return scope;
  }

  base::Result<void> take_all(const std::string& at, int dir, const ignore::ScopePtr& scope,
                              const std::shared_ptr<Ancestor>& holder, const std::vector<Listed>& listed) {
    std::string path = at.empty() ? at : at + "/";
    const auto base = path.size();
    for (const auto& one : listed) {
      path.resize(base);
      path += one.name;
      if (path.size() > index::kMaxPathBytes) {
        tree_.report(ProblemKind::kPathTooLong, path);
        continue;
      }
      take(path, one, dir, scope, holder);
    }
    // What could not be looked at, and what is still to be, is kept as well.
    if (tree_.nodes.size() + tree_.unknown.size() + pending_.size() > kMaxNodes)
      return base::errno_error(EFBIG, "scan: too many paths");
    return {};
  }

  // stat(2) of an entry; nullopt: reported, or gone.
  std::optional<struct stat> look(const std::string& path, const Listed& one, int dir) {
    struct stat st {};
    if (::fstatat(dir, one.name.c_str(), &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) == 0) return st;
    if (errno != ENOENT) lose(ProblemKind::kUnreadable, path, errno);
    return std::nullopt;
  }

  void take(const std::string& path, const Listed& one, int dir, const ignore::ScopePtr& scope,
            const std::shared_ptr<Ancestor>& holder) {
    std::optional<struct stat> st;
    bool directory = one.type == DT_DIR;
    if (one.type == DT_UNKNOWN) {  // file systems need not say
      st = look(path, one, dir);
      if (!st) return;
      directory = S_ISDIR(st->st_mode);
    }
    const auto decision = rules_.decide(*scope, path, directory, probe_);
    if (!decision.synced()) {
      leave_out(path, directory, decision);
      if (!directory || !decision.enter) return;
    }
    if (directory) {
      pending_.push_back({path, scope, holder, decision.synced()});
      return;
    }
    if (!st) st = look(path, one, dir);
    if (!st) return;
    if (S_ISDIR(st->st_mode)) {  // a file a moment ago
      lose(ProblemKind::kUnstable, path, 0);
      return;
    }
    take_file(path, *st, holder);
  }

  void take_file(const std::string& path, const struct stat& st, const std::shared_ptr<Ancestor>& holder) {
    if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode)) {
      tree_.report(ProblemKind::kSpecial, path);
      return;
    }
    if (S_ISLNK(st.st_mode) && options_.symlinks == Symlinks::kSkip) {
      lose(ProblemKind::kSymlinkSkipped, path, 0);
      return;
    }
    if (options_.max_file_bytes != 0 && S_ISREG(st.st_mode) &&
        static_cast<std::uint64_t>(st.st_size) > options_.max_file_bytes) {
      lose(ProblemKind::kTooLarge, path, 0);
      return;
    }
    tell(holder);
    add(path, stat_info(st, racy_));
  }

  void tell(const std::shared_ptr<Ancestor>& directory) {
    if (!directory || directory->told) return;
    directory->told = true;
    tell(directory->parent);
    add(directory->path, directory->stat);
  }

  void add(const std::string& path, const index::StatInfo& stat) {
    if (!is_utf8(path.substr(path.rfind('/') + 1))) tree_.report(ProblemKind::kNameNotUtf8, path);
    tree_.nodes.push_back({tree_.paths.size(), static_cast<std::uint32_t>(path.size()), stat});
    tree_.paths += path;
  }

  int root_;
  const ignore::Rules& rules_;
  ignore::RuleTree* scopes_;
  const ScanOptions& options_;
  const RacyRule& racy_;
  const std::stop_token& stop_;
  ignore::CredentialProbe probe_;
  std::unique_ptr<char[]> list_;
  std::vector<Pending> pending_;
  std::map<std::string, std::shared_ptr<Ancestor>> ancestors_;
  Tree tree_;
};

}  // namespace

void Tree::report(ProblemKind kind, std::string_view path, int error) {
  ++problem_count;
  if (problems.size() < kMaxReported) problems.push_back({kind, std::string(path), error});
}

base::Result<Tree> walk(int root, const ignore::Rules& rules, ignore::RuleTree* tree,
                        const ScanOptions& options, const RacyRule& racy, const std::stop_token& stop) {
  return Walker(root, rules, tree, options, racy, stop).run();
}

}  // namespace nearbox::scan
