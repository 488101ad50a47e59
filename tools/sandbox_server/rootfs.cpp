// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/rootfs.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <memory>
#include <optional>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

namespace nearbox::sandbox_server {
namespace {

constexpr std::array<std::string_view, 13> kOverlaid{
    "bin", "boot", "etc", "lib", "lib32", "lib64", "libx32", "libexec", "opt", "sbin", "srv", "usr", "var"};
constexpr std::array<std::string_view, 4> kEmpty{"mnt", "media", "lost+found", "snap"};
// Directories that exist in the upper layer from the start, owned by us: without that, a server that
// maps one user only could not write to them, since their owner on the machine is not mapped.
constexpr std::array<std::string_view, 16> kOwned{
    "usr/local",         "usr/local/bin", "usr/local/sbin", "usr/local/lib", "usr/local/share",
    "usr/local/include", "usr/local/etc", "usr/local/src",  "opt",           "srv",
    "var/lib",           "var/log",       "var/cache",      "var/spool",     "var/tmp",
    "etc/profile.d"};

// mount_setattr(2); its wrapper is newer than the oldest C library we run on.
struct MountAttr {
  std::uint64_t attr_set;
  std::uint64_t attr_clr;
  std::uint64_t propagation;
  std::uint64_t userns_fd;
};
constexpr std::uint64_t kAttrReadOnly = 1;
constexpr unsigned kAtRecursive = 0x8000;

template <std::size_t N>
bool contains(const std::array<std::string_view, N>& set, std::string_view name) {
  return std::find(set.begin(), set.end(), name) != set.end();
}

base::Result<void> make_dir(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST) return base::last_errno("mkdir " + path);
  if (::chmod(path.c_str(), mode) != 0) return base::last_errno("chmod " + path);
  return {};
}

// Every missing directory of `path`, which may begin with a directory that exists.
base::Result<void> make_dirs(const std::string& path) {
  for (std::size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
    const auto part = path.substr(0, at);
    if (::mkdir(part.c_str(), 0755) != 0 && errno != EEXIST) {
      struct stat st {};
      if (::stat(part.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) return base::last_errno("mkdir " + part);
    }
    if (at == std::string::npos) return {};
  }
}

base::Result<void> do_mount(const std::string& source, const std::string& target, const char* type,
                            unsigned long flags, const std::string& options = {}) {
  if (::mount(source.c_str(), target.c_str(), type, flags, options.empty() ? nullptr : options.c_str()) !=
      0) {
    return base::last_errno("mount " + target);
  }
  return {};
}

base::Result<void> make_read_only(const std::string& path) {
  MountAttr attr{kAttrReadOnly, 0, 0, 0};
  if (::syscall(SYS_mount_setattr, AT_FDCWD, path.c_str(), kAtRecursive, &attr, sizeof attr) != 0) {
    return base::last_errno("make read-only " + path);
  }
  return {};
}

base::Result<void> bind_read_only(const std::string& source, const std::string& target) {
  if (auto done = do_mount(source, target, nullptr, MS_BIND | MS_REC); !done) return done;
  return make_read_only(target);
}

std::string read_text(const std::string& path) {
  constexpr std::size_t kMaxText = 1024 * 1024;
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string out(kMaxText, '\0');
  const auto got = fd ? ::read(fd.get(), out.data(), out.size()) : -1;
  out.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  return out;
}

base::Result<void> write_text(const std::string& path, std::string_view text, mode_t mode) {
  const base::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!fd || ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return base::last_errno("write " + path);
  }
  return {};
}

// Replaces a file of the view; where its directory cannot be written, by a mount on it.
base::Result<void> replace_file(const std::string& path, std::string_view text, mode_t mode) {
  const auto fresh = path + ".nearbox";
  if (write_text(fresh, text, mode) && ::rename(fresh.c_str(), path.c_str()) == 0) return {};
  (void)::unlink(fresh.c_str());
  const auto beside = "/run/nearbox" + path.substr(path.rfind('/'));
  (void)::mkdir("/run/nearbox", 0755);
  if (auto done = write_text(beside, text, mode); !done) return done;
  return do_mount(beside, path, nullptr, MS_BIND);
}

// The file's lines without those of our user's name or number, and ours at the end.
std::string with_user_line(const std::string& old, std::string_view line, bool by_number) {
  std::string out;
  std::string_view rest(old);
  while (!rest.empty()) {
    const auto end = rest.find('\n');
    const auto text = rest.substr(0, end);
    const auto first = text.find(':');
    const auto second = first == std::string_view::npos ? first : text.find(':', first + 1);
    bool ours = text.substr(0, first) == kUserName;
    if (by_number && second != std::string_view::npos) {
      const auto number = text.substr(second + 1);
      ours = ours || number.substr(0, number.find(':')) == std::to_string(kUserUid);
    }
    if (!ours && !text.empty()) out.append(text).append("\n");
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  return out.append(line).append("\n");
}

// Whether a path (which ends with '/') lies in what the sandbox needs for itself.
bool reserved_for_new(const std::string& slashed) {
  for (const std::string_view taken :
       {"/proc/", "/sys/", "/dev/", "/run/", "/etc/", "/usr/", "/bin/", "/lib/", "/lib64/", "/sbin/"}) {
    if (slashed.compare(0, taken.size(), taken) == 0) return true;
  }
  return false;
}

// Or is itself a directory that has a mount or contents already.
bool reserved(const std::string& slashed) {
  if (reserved_for_new(slashed)) return true;
  for (const std::string_view whole :
       {"/home/", "/home/user/", "/root/", "/tmp/", "/var/", "/opt/", "/code/"}) {
    if (slashed == whole) return true;
  }
  return false;
}

// Links lead nowhere but into the root, and none of /proc's to descriptors is followed.
base::UniqueFd open_in_root(int root_fd, const std::string& path) {
  open_how how{};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  return base::UniqueFd(static_cast<int>(::syscall(SYS_openat2, root_fd, path.c_str(), &how, sizeof how)));
}

std::optional<std::string> path_of(int fd) {
  std::array<char, 4096> text{};
  const auto size = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), text.data(), text.size());
  if (size <= 0 || static_cast<std::size_t>(size) == text.size()) return std::nullopt;
  return std::string(text.data(), static_cast<std::size_t>(size));
}

// Where a directory lies as seen from the root; "" is the root itself.
std::optional<std::string> path_in_root(int root_fd, int fd) {
  const auto root = path_of(root_fd);
  const auto path = path_of(fd);
  if (!root || !path || path->compare(0, root->size(), *root) != 0) return std::nullopt;
  auto rest = path->substr(root->size());
  if (!rest.empty() && rest.front() != '/') return std::nullopt;
  return rest;
}

class RootBuilder {
 public:
  RootBuilder(std::string dir, IsolationMode mode, const std::vector<std::string>& binds, std::string id)
      : dir_(std::move(dir)), root_(dir_ + "/root"), mode_(mode), binds_(binds), id_(std::move(id)) {}

  base::Result<void> build() {
    // Nothing of what follows may reach the machine's own mounts.
    if (auto done = do_mount("none", "/", nullptr, MS_REC | MS_PRIVATE); !done) return done;
    // Relative paths from here on: an overlay's options cannot hold every character of a path.
    if (::chdir(dir_.c_str()) != 0) return base::last_errno("chdir " + dir_);
    if (auto done = fresh_directories(); !done) return done;
    if (auto done = do_mount(root_, root_, nullptr, MS_BIND); !done) return done;
    if (auto done = top_level(); !done) return done;
    for (std::size_t i = 0; i < binds_.size(); ++i) {
      if (auto done = bind_fresh(binds_[i], i); !done) return done;
    }
    return pivot();
  }

 private:
  base::Result<void> fresh_directories() {
    struct Fresh {
      const char* name;
      mode_t mode;
      bool users;
    };
    for (const auto& [name, mode, users] :
         {Fresh{"root", 0755, false}, Fresh{"home", 0755, false}, Fresh{"home/user", 0755, true},
          Fresh{"roothome", 0700, false}, Fresh{"tmp", 01777, false}, Fresh{"upper", 0755, false},
          Fresh{"work", 0755, false}, Fresh{"bind", 0755, false}, Fresh{"code", 0777, true}}) {
      if (auto done = make_dir(name, mode); !done) return done;
      if (users) give_to_user(name);
    }
    return {};
  }

  // With one mapped user everything is that user's already.
  void give_to_user(const std::string& path) const {
    if (mode_ == IsolationMode::kRoot) (void)!::lchown(path.c_str(), kUserUid, kUserUid);
  }

  base::Result<void> top_level() {
    const std::unique_ptr<DIR, int (*)(DIR*)> listing(::opendir("/"), ::closedir);
    if (!listing) return base::last_errno("list /");
    while (const auto* entry = ::readdir(listing.get())) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      if (auto done = top_level_entry(name); !done) return done;
    }
    for (const char* name : {"home", "root", "tmp", "proc", "run", "code", "mnt"}) {
      (void)::mkdir((root_ + "/" + name).c_str(), 0755);
    }
    if (auto done = do_mount("home", root_ + "/home", nullptr, MS_BIND); !done) return done;
    if (auto done = do_mount("roothome", root_ + "/root", nullptr, MS_BIND); !done) return done;
    if (auto done = do_mount("tmp", root_ + "/tmp", nullptr, MS_BIND); !done) return done;
    if (auto done = do_mount("code", root_ + "/code", nullptr, MS_BIND); !done) return done;
    if (auto done = do_mount("proc", root_ + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC); !done)
      return done;
    return run_directory();
  }

  base::Result<void> top_level_entry(const std::string& name) {
    const auto source = "/" + name;
    const auto target = root_ + source;
    struct stat st {};
    if (::lstat(source.c_str(), &st) != 0) return {};
    if (S_ISLNK(st.st_mode)) {
      std::array<char, 4096> link{};
      const auto size = ::readlink(source.c_str(), link.data(), link.size() - 1);
      if (size > 0) (void)!::symlink(link.data(), target.c_str());
      return {};
    }
    if (!S_ISDIR(st.st_mode)) return {};
    if (auto done = make_dir(target, 0755); !done) return done;
    if (name == "home" || name == "root" || name == "tmp" || name == "proc" || name == "run" ||
        name == "code" || contains(kEmpty, name)) {
      return {};
    }
    if (name == "dev") return dev_directory(target);
    if (contains(kOverlaid, name) && overlay(name, target)) return {};
    // What cannot be shown (a foreign FUSE mount, say) stays an empty directory.
    (void)bind_read_only(source, target).ok();
    return {};
  }

  base::Result<void> dev_directory(const std::string& target) {
    if (auto done = do_mount("/dev", target, nullptr, MS_BIND | MS_REC); !done) return done;
    (void)do_mount("tmpfs", target + "/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777").ok();
    return {};
  }

  bool overlay(const std::string& name, const std::string& target) {
    if (try_overlay(name, target, "")) return true;
    // The directory's file system cannot hold an upper layer (an overlay itself, NFS): use memory.
    (void)::mkdir("memory", 0755);
    if (!memory_ && !do_mount("tmpfs", "memory", "tmpfs", MS_NOSUID, "mode=0755")) return false;
    memory_ = true;
    (void)::mkdir("memory/upper", 0755);
    (void)::mkdir("memory/work", 0755);
    return try_overlay(name, target, "memory/");
  }

  bool try_overlay(const std::string& name, const std::string& target, const std::string& prefix) {
    const auto upper = prefix + "upper/" + name;
    const auto work = prefix + "work/" + name;
    if (!make_dir(upper, 0755) || !make_dir(work, 0755)) return false;
    for (const auto& owned : kOwned) {
      if (owned.substr(0, owned.find('/')) != name || owned.find('/') == std::string_view::npos) continue;
      own_directory(std::string(owned), prefix + "upper/" + std::string(owned));
    }
    const std::string options = "lowerdir=/" + name + ",upperdir=" + upper + ",workdir=" + work +
                                (mode_ == IsolationMode::kUserns ? ",userxattr" : "");
    return do_mount("overlay", target, "overlay", 0, options).ok();
  }

  // As E2B's templates have it, everybody may write below /usr/local.
  static void own_directory(const std::string& path, const std::string& upper) {
    struct stat st {};
    if (::lstat(("/" + path).c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) return;
    const bool shared = path.rfind("usr/local", 0) == 0;
    (void)make_dir(upper, shared ? 0777 : st.st_mode & 07777U).ok();
    (void)!::lchown(upper.c_str(), st.st_uid, st.st_gid);
  }

  base::Result<void> run_directory() {
    const auto resolver = read_text("/etc/resolv.conf");
    std::array<char, 4096> real{};
    const bool in_run = ::realpath("/etc/resolv.conf", real.data()) != nullptr &&
                        std::string_view(real.data()).substr(0, 5) == "/run/";
    const auto run = root_ + "/run";
    if (auto done = do_mount("tmpfs", run, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"); !done) return done;
    if (auto done = make_dir(run + "/lock", 01777); !done) return done;
    if (auto done = make_dirs(run + "/e2b"); !done) return done;
    (void)write_text(run + "/e2b/.E2B_SANDBOX", "true", 0644).ok();
    (void)write_text(run + "/e2b/.E2B_SANDBOX_ID", id_, 0644).ok();
    if (in_run) {
      const std::string path = root_ + real.data();
      if (make_dirs(path.substr(0, path.rfind('/')))) (void)write_text(path, resolver, 0644).ok();
    }
    return {};
  }

  base::Result<void> bind_fresh(const std::string& path, std::size_t index) {
    const auto source = "bind/" + std::to_string(index);
    if (auto done = make_dir(source, 0755); !done) return done;
    give_to_user(source);
    const base::UniqueFd root(::open(root_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!root) return base::last_errno("open " + root_);
    const auto target = make_bind_target(root.get(), path);
    if (!target) return target.error();
    // By descriptor: what was checked is what is mounted on.
    return do_mount(source, "/proc/self/fd/" + std::to_string(target->get()), nullptr, MS_BIND);
  }

  base::Result<void> pivot() {
    if (::chdir(root_.c_str()) != 0 || ::syscall(SYS_pivot_root, ".", ".") != 0)
      return base::last_errno("pivot_root");
    if (::umount2(".", MNT_DETACH) != 0) return base::last_errno("detach the old root");
    if (::chdir("/") != 0) return base::last_errno("chdir /");
    return {};
  }

  std::string dir_;
  std::string root_;
  IsolationMode mode_;
  const std::vector<std::string>& binds_;
  std::string id_;
  bool memory_ = false;
};

// The account that sandboxes have: as in E2B's templates, it may become root without a password.
base::Result<void> add_user() {
  const std::string name(kUserName);
  const auto number = std::to_string(kUserUid);
  const auto passwd = name + ":x:" + number + ":" + number + "::" + std::string(kUserHome) + ":/bin/bash";
  if (auto done = replace_file("/etc/passwd", with_user_line(read_text("/etc/passwd"), passwd, true), 0644);
      !done) {
    return done;
  }
  const auto group = name + ":x:" + number + ":";
  if (auto done = replace_file("/etc/group", with_user_line(read_text("/etc/group"), group, true), 0644);
      !done) {
    return done;
  }
  if (const auto shadow = read_text("/etc/shadow"); !shadow.empty()) {
    (void)replace_file("/etc/shadow", with_user_line(shadow, name + ":*:19000:0:99999:7:::", false), 0640)
        .ok();
  }
  struct stat st {};
  if (::stat("/etc/sudoers.d", &st) == 0) {
    (void)write_text("/etc/sudoers.d/nearbox", name + " ALL=(ALL:ALL) NOPASSWD: ALL\n", 0440).ok();
  }
  return {};
}

}  // namespace

bool valid_bind_path(std::string_view path) {
  constexpr std::size_t kMaxPath = 1024;
  if (path.size() < 2 || path.size() > kMaxPath || path.front() != '/' || path.back() == '/') return false;
  if (path.find("//") != std::string_view::npos || path.find('\0') != std::string_view::npos) return false;
  const std::string slashed = std::string(path) + "/";
  if (slashed.find("/../") != std::string::npos || slashed.find("/./") != std::string::npos) return false;
  return !reserved(slashed);
}

base::Result<base::UniqueFd> make_bind_target(int root_fd, const std::string& path) {
  const auto context = "bind " + path;
  if (!valid_bind_path(path)) return base::errno_error(EINVAL, context);
  base::UniqueFd at(::fcntl(root_fd, F_DUPFD_CLOEXEC, 0));
  if (!at) return base::last_errno(context);
  for (std::size_t begin = 1, end = 0; end != path.size(); begin = end + 1) {
    end = std::min(path.find('/', begin), path.size());
    const auto part = path.substr(0, end);
    auto next = open_in_root(root_fd, part);
    if (!next && errno == ENOENT) {
      // What lies in the way of a link must not get a directory of ours either.
      const auto where = path_in_root(root_fd, at.get());
      if (!where || reserved_for_new(*where + "/" + path.substr(begin, end - begin) + "/"))
        return base::errno_error(EACCES, context + " leads to a directory of the system");
      if (::mkdirat(at.get(), path.substr(begin, end - begin).c_str(), 0755) != 0)
        return base::last_errno(context);
      next = open_in_root(root_fd, part);
    }
    if (!next) return base::last_errno(context);
    at = std::move(next);
  }
  const auto where = path_in_root(root_fd, at.get());
  if (!where || where->empty() || reserved(*where + "/"))
    return base::errno_error(EACCES, context + " leads to a directory of the system");
  return at;
}

base::Result<void> enter_root(const std::string& dir, IsolationMode mode,
                              const std::vector<std::string>& binds, const std::string& sandbox_id) {
  RootBuilder builder(dir, mode, binds, sandbox_id);
  if (auto done = builder.build(); !done) return done;
  return add_user();
}

}  // namespace nearbox::sandbox_server
