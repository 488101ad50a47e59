// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/sandbox_table.h"

#include <algorithm>
#include <array>
#include <dirent.h>
#include <fcntl.h>
#include <filesystem>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

// Removes a tree without following links. Directories that refuse are opened up first: an overlay's
// work directory has no permissions at all.
bool remove_tree(int parent, const char* name) {
  if (::unlinkat(parent, name, 0) == 0 || errno == ENOENT) return true;
  base::UniqueFd dir(::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!dir && errno == EACCES && ::fchmodat(parent, name, 0700, 0) == 0) {
    dir.reset(::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  }
  if (!dir) return false;
  struct stat st {};
  if (::fstat(dir.get(), &st) == 0 && (st.st_mode & 0700U) != 0700U) (void)::fchmod(dir.get(), 0700);
  bool all = true;
  const int copy = ::fcntl(dir.get(), F_DUPFD_CLOEXEC, 0);
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::fdopendir(copy), ::closedir);
  while (listing) {
    const auto* entry = ::readdir(listing.get());
    if (entry == nullptr) break;
    const std::string_view child = entry->d_name;
    if (child != "." && child != "..") all = remove_tree(dir.get(), entry->d_name) && all;
  }
  return ::unlinkat(parent, name, AT_REMOVEDIR) == 0 && all;
}

std::string new_id() {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::string out = "i";
  // 32 of 36 letters are enough: no bias, and an id says nothing.
  for (const char c : random_bytes(20)) out.push_back(kLetters[static_cast<unsigned char>(c) % 32U]);
  return out;
}

base::Result<base::UniqueFd> lock_directory(const std::string& dir) {
  std::error_code ec;
  std::filesystem::create_directories(dir, ec);
  if (ec) return base::errno_error(ec.value(), "make " + dir);
  base::UniqueFd lock(::open((dir + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock) return base::last_errno("open " + dir + "/lock");
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return base::errno_error(errno == EWOULDBLOCK ? EBUSY : errno,
                             "another sandbox server uses the directory " + dir);
  }
  return lock;
}

}  // namespace

base::Result<std::unique_ptr<SandboxTable>> SandboxTable::open(const std::string& dir,
                                                               const std::string& init_program, bool isolate,
                                                               base::Logger& log) {
  auto lock = lock_directory(dir);
  if (!lock) return std::move(lock).error();
  std::error_code ec;
  const auto real = std::filesystem::canonical(dir, ec).string();
  if (ec) return base::errno_error(ec.value(), "resolve " + dir);
  std::unique_ptr<SandboxTable> out(new SandboxTable(real, std::move(*lock), log));
  out->launcher_.init_program = init_program;
  for (const char* name : {"sandboxes", "trash"}) {
    const auto path = real + "/" + name;
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return base::last_errno("mkdir " + path);
  }
  out->clean_leftovers();
  out->choose_mode(isolate);
  out->thread_ = std::jthread([table = out.get()](const std::stop_token& stop) { table->run(stop); });
  return out;
}

SandboxTable::SandboxTable(std::string dir, base::UniqueFd lock, base::Logger& log)
    : dir_(std::move(dir)), lock_(std::move(lock)), log_(log) {}

SandboxTable::~SandboxTable() { stop(); }

void SandboxTable::clean_leftovers() {
  std::size_t count = 0;
  for (const char* name : {"sandboxes", "trash"}) {
    std::error_code ec;
    for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/" + name, ec)) {
      remove_now(entry.path().string());
      ++count;
    }
  }
  if (count > 0)
    log_.warn("sandbox server removed what ended sandboxes had left directories=" + std::to_string(count));
}

// Tries what a sandbox would do, from the best form of isolation down.
void SandboxTable::choose_mode(bool isolate) {
  if (!isolate) {
    plain_reason_ = "switched off";
    return;
  }
  if (base::fault::active("sandbox_server.no_namespaces")) {
    plain_reason_ = "namespaces are not allowed here";
    return;
  }
  const auto probe_dir = dir_ + "/trash/probe";
  for (const auto mode : {IsolationMode::kRoot, IsolationMode::kUserns}) {
    if (mode == IsolationMode::kRoot && ::geteuid() != 0) continue;
    (void)::mkdir(probe_dir.c_str(), 0700);
    InitConfig config;
    config.id = "probe";
    config.dir = probe_dir;
    config.mode = mode;
    config.probe = true;
    auto launcher = launcher_;
    launcher.mode = mode;
    const auto probed = InitProcess::launch(launcher, config, -1);
    if (probed) {
      launcher_.mode = mode;
      plain_reason_.clear();
    } else {
      plain_reason_ = probed.error().context;
    }
    if (probed) break;
  }
  remove_now(probe_dir);
}

base::Result<std::shared_ptr<Sandbox>> SandboxTable::create(SandboxSpec spec) {
  {
    base::MutexLock lock(mu_);
    if (stopping_) return base::errno_error(ECANCELED, "the server is stopping");
    if (table_.size() + starting_ >= kMaxSandboxes) {
      return base::errno_error(EAGAIN, "at most " + std::to_string(kMaxSandboxes) + " sandboxes at once");
    }
    ++starting_;
  }
  const auto id = new_id();
  const auto dir = dir_ + "/sandboxes/" + id;
  base::Result<std::shared_ptr<Sandbox>> made = base::errno_error(EIO);
  if (::mkdir(dir.c_str(), 0700) != 0) {
    made = base::last_errno("mkdir " + dir);
  } else {
    made = Sandbox::create(launcher_, std::move(spec), id, dir);
  }
  bool too_late = false;
  {
    base::MutexLock lock(mu_);
    --starting_;
    too_late = stopping_;
    if (made && !too_late) table_.emplace(id, *made);
    changed_.notify_all();
  }
  if (made && too_late) (void)(*made)->kill();
  if (!made || too_late) discard(dir);
  if (made && too_late) return base::errno_error(ECANCELED, "the server is stopping");
  return made;
}

std::shared_ptr<Sandbox> SandboxTable::find(std::string_view id) {
  base::MutexLock lock(mu_);
  const auto found = table_.find(id);
  return found == table_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<Sandbox>> SandboxTable::all() {
  base::MutexLock lock(mu_);
  std::vector<std::shared_ptr<Sandbox>> out;
  for (const auto& [id, sandbox] : table_) {
    (void)id;
    out.push_back(sandbox);
  }
  return out;
}

bool SandboxTable::kill(std::string_view id) {
  std::shared_ptr<Sandbox> sandbox;
  {
    base::MutexLock lock(mu_);
    const auto found = table_.find(id);
    if (found == table_.end()) return false;
    sandbox = found->second;
    table_.erase(found);
  }
  const bool killed = sandbox->kill();
  discard(sandbox->dir());
  return killed;
}

void SandboxTable::wake() {
  base::MutexLock lock(mu_);
  changed_.notify_all();
}

// Out of the way at once; the files go in the background.
void SandboxTable::discard(const std::string& dir) {
  const auto target = dir_ + "/trash/" + dir.substr(dir.rfind('/') + 1);
  if (::rename(dir.c_str(), target.c_str()) != 0) return;
  base::MutexLock lock(mu_);
  trash_.push_back(target);
  changed_.notify_all();
}

void SandboxTable::remove_now(const std::string& path) {
  const auto slash = path.rfind('/');
  const base::UniqueFd parent(::open(path.substr(0, slash).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!remove_tree(parent.get(), path.c_str() + slash + 1)) {
    log_.warn("sandbox server could not remove all files path=" + path);
  }
}

WallClock::time_point SandboxTable::next_end() {
  auto next = WallClock::now() + std::chrono::seconds(1);  // also how often dead sandboxes are noticed
  for (const auto& sandbox : all()) {
    const auto now = sandbox->snapshot();
    if (now.state == Sandbox::State::kRunning) next = std::min(next, now.ends);
  }
  return next;
}

void SandboxTable::expire() {
  for (const auto& sandbox : all()) {
    const auto now = sandbox->snapshot();
    if (now.state != Sandbox::State::kEnded && !sandbox->alive()) {
      log_.warn("sandbox ended by itself id=" + sandbox->id());
      (void)kill(sandbox->id());
      continue;
    }
    if (now.state != Sandbox::State::kRunning || now.ends > WallClock::now()) continue;
    if (sandbox->spec().auto_pause && sandbox->pause()) {
      log_.info("sandbox paused reason=timeout id=" + sandbox->id());
    } else {
      (void)kill(sandbox->id());
      log_.info("sandbox killed reason=timeout id=" + sandbox->id());
    }
  }
}

void SandboxTable::run(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "sandboxes");
  while (!stop.stop_requested()) {
    try {
      expire();
      const auto left = next_end() - WallClock::now();
      std::string path;
      {
        base::MutexLock lock(mu_);
        if (trash_.empty() && !stopping_ && left.count() > 0) {
          changed_.wait_until(mu_, std::chrono::steady_clock::now() + left);
        }
        if (!trash_.empty()) {
          path = std::move(trash_.front());
          trash_.pop_front();
        }
      }
      if (!path.empty()) remove_now(path);
    } catch (const std::exception& e) {
      log_.error(std::string("sandbox table error=") + e.what());
    }
  }
}

void SandboxTable::stop() {
  std::vector<std::string> ids;
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (starting_ > 0 && changed_.wait_until(mu_, deadline)) {
    }
    for (const auto& [id, sandbox] : table_) {
      (void)sandbox;
      ids.push_back(id);
    }
  }
  for (const auto& id : ids) (void)kill(id);
  if (thread_.joinable()) {
    thread_.request_stop();
    wake();
    thread_.join();
  }
  std::deque<std::string> rest;
  {
    base::MutexLock lock(mu_);
    rest.swap(trash_);
  }
  for (const auto& path : rest) remove_now(path);
}

}  // namespace nearbox::sandbox_server
