// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/sandbox_table.h"

#include <algorithm>
#include <array>
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

constexpr const char* kRecordSuffix = ".json";

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
  out->trash_ = std::make_unique<Trash>(real + "/trash", log);
  out->choose_mode(isolate);
  out->take_over();
  out->thread_ = std::jthread([table = out.get()](const std::stop_token& stop) { table->run(stop); });
  return out;
}

SandboxTable::SandboxTable(std::string dir, base::UniqueFd lock, base::Logger& log)
    : dir_(std::move(dir)), lock_(std::move(lock)), log_(log) {}

SandboxTable::~SandboxTable() { stop(); }

// The sandbox of a record, stored. False: it cannot be read, and what belongs to it is left alone.
bool SandboxTable::bring_back(const std::string& record_path) {
  auto record = read_record(record_path);
  const auto dir = record_path.substr(0, record_path.size() - std::string_view(kRecordSuffix).size());
  if (!record || dir != dir_ + "/sandboxes/" + record->id) {
    log_.warn("sandbox server leaves a sandbox alone whose record it cannot read path=" + record_path +
              " error=" + (record ? "another name" : record.error().message()));
    return false;
  }
  auto sandbox = Sandbox::restore(launcher_, std::move(*record), dir);
  base::MutexLock lock(mu_);
  table_.emplace(sandbox->id(), std::move(sandbox));
  return true;
}

void SandboxTable::take_over() {
  std::set<std::string> kept;
  std::vector<std::string> left;
  std::size_t stored = 0;
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/sandboxes", ec)) {
    const auto path = entry.path().string();
    auto dir = entry.path();
    struct stat st {};
    const bool whole = dir.extension() == kRecordSuffix &&
                       ::lstat(dir.replace_extension().c_str(), &st) == 0 && S_ISDIR(st.st_mode);
    if (!whole) {
      left.push_back(path);
      continue;
    }
    kept.insert(path);
    kept.insert(dir.string());
    if (bring_back(path)) ++stored;
  }
  left.erase(
      std::remove_if(left.begin(), left.end(), [&](const auto& path) { return kept.count(path) != 0; }),
      left.end());
  const auto count = left.size() + trash_->empty_now();
  for (const auto& path : left) discard(path);
  if (stored > 0) log_.info("sandbox server brings back stored sandboxes count=" + std::to_string(stored));
  if (count > 0)
    log_.warn("sandbox server removes what ended sandboxes had left directories=" + std::to_string(count));
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
  const auto probe_dir = dir_ + "/probe";
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
  const base::UniqueFd here(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  (void)remove_tree(here.get(), "probe");
}

std::size_t SandboxTable::with_processes() {
  const auto now = all();
  return static_cast<std::size_t>(
      std::count_if(now.begin(), now.end(), [](const auto& sandbox) { return !sandbox->snapshot().stored; }));
}

// Takes a place for a new sandbox; `same`: the one that this request has made before.
base::Result<void> SandboxTable::admit(const SandboxSpec& spec, std::shared_ptr<Sandbox>& same) {
  const auto living = with_processes();
  base::MutexLock lock(mu_);
  if (stopping_) return base::errno_error(ECANCELED, "the server is stopping");
  if (!spec.idempotency_key.empty()) {
    for (const auto& [id, sandbox] : table_) {
      (void)id;
      if (sandbox->spec().idempotency_key == spec.idempotency_key) same = sandbox;
    }
    if (same) return {};
    if (starting_keys_.count(spec.idempotency_key) != 0)
      return base::errno_error(EALREADY, "a request with this Idempotency-Key is under way");
  }
  if (living + starting_ >= kMaxSandboxes) {
    return base::errno_error(EAGAIN, "at most " + std::to_string(kMaxSandboxes) + " sandboxes at once");
  }
  if (table_.size() + starting_ >= kMaxKept) {
    return base::errno_error(EAGAIN, "at most " + std::to_string(kMaxKept) + " sandboxes with paused ones");
  }
  ++starting_;
  if (!spec.idempotency_key.empty()) starting_keys_.insert(spec.idempotency_key);
  return {};
}

base::Result<std::shared_ptr<Sandbox>> SandboxTable::create(SandboxSpec spec) {
  std::shared_ptr<Sandbox> same;
  if (auto admitted = admit(spec, same); !admitted) return std::move(admitted).error();
  if (same) return same;
  const auto key = spec.idempotency_key;
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
    starting_keys_.erase(key);
    too_late = stopping_;
    if (made && !too_late) table_.emplace(id, *made);
    changed_.notify_all();
  }
  if (made && too_late) (void)(*made)->kill();
  if (!made || too_late) discard(dir);
  if (made && too_late) return base::errno_error(ECANCELED, "the server is stopping");
  return made;
}

base::Result<bool> SandboxTable::resume(Sandbox& sandbox, std::chrono::seconds timeout, ResumeMode mode) {
  if (sandbox.snapshot().stored && with_processes() >= kMaxSandboxes) {
    return base::errno_error(EAGAIN, "at most " + std::to_string(kMaxSandboxes) + " sandboxes at once");
  }
  {
    base::MutexLock lock(mu_);
    if (stopping_) return base::errno_error(ECANCELED, "the server is stopping");
    ++starting_;  // stop() waits for it
  }
  auto resumed = sandbox.resume(timeout, mode);
  base::MutexLock lock(mu_);
  --starting_;
  changed_.notify_all();
  return resumed;
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

void SandboxTable::discard(const std::string& dir) {
  if (!trash_->take(dir)) log_.warn("sandbox server could not remove path=" + dir);
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
    const auto mode = sandbox->spec().auto_pause_memory ? PauseMode::kMemory : PauseMode::kFilesOnly;
    if (sandbox->spec().auto_pause && sandbox->pause(mode)) {
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
      base::MutexLock lock(mu_);
      if (!stopping_ && left.count() > 0) {
        changed_.wait_until(mu_, std::chrono::steady_clock::now() + left);
      }
    } catch (const std::exception& e) {
      log_.error(std::string("sandbox table error=") + e.what());
    }
  }
}

void SandboxTable::stop() {
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (starting_ > 0 && changed_.wait_until(mu_, deadline)) {
    }
  }
  for (const auto& sandbox : all()) {
    if (!sandbox->put_away()) (void)kill(sandbox->id());
  }
  if (thread_.joinable()) {
    thread_.request_stop();
    wake();
    thread_.join();
  }
  if (trash_) trash_->stop();
}

}  // namespace nearbox::sandbox_server
