// SPDX-License-Identifier: Apache-2.0
#include "sync/push/large_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <optional>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "client/wire/pack.h"
#include "sync/ignore/beneath.h"
#include "sync/push/push_run.h"
#include "sync/scan/scan.h"

namespace nearbox::push {

void RemoteChunks::add(wire::ByteView records) {
  while (!records.empty()) {
    const auto take = std::min(records.size(), wire::kPushChunkBytes - partial_.size());
    partial_.insert(partial_.end(), records.begin(), records.begin() + static_cast<std::ptrdiff_t>(take));
    records = records.subspan(take);
    if (partial_.size() < wire::kPushChunkBytes) return;
    const auto chunk = wire::decode<wire::PushChunk>(partial_);
    partial_.clear();
    if (!chunk || chunk->length == 0 || chunk->length > wire::kMaxChunk) continue;
    if (chunks_.size() >= wire::kMaxPushChunks || at_ > wire::kMaxPushFileSize) continue;
    by_hash_.emplace(chunk->hash, static_cast<std::uint32_t>(chunks_.size()));
    chunks_.push_back({at_, chunk->length, chunk->hash});
    at_ += chunk->length;
  }
}

const wire::Chunk* RemoteChunks::find(const wire::Chunk& like) const {
  const auto found = by_hash_.find(like.hash);
  if (found == by_hash_.end() || chunks_[found->second].length != like.length) return nullptr;
  return &chunks_[found->second];
}

bool RemoteChunks::at(const wire::Chunk& chunk) const {
  const auto found =
      std::lower_bound(chunks_.begin(), chunks_.end(), chunk.offset,
                       [](const wire::Chunk& c, std::uint64_t offset) { return c.offset < offset; });
  return found != chunks_.end() && *found == chunk;
}

void Segments::add(const wire::Chunk& chunk, const wire::Chunk* from) {
  if (!segments_.empty()) {
    auto& last = segments_.back();
    const bool follows = last.offset + last.length == chunk.offset && last.copied == (from != nullptr);
    if (follows && (from == nullptr || last.from + last.length == from->offset)) {
      last.length += chunk.length;
      return;
    }
  }
  segments_.push_back({chunk.offset, chunk.length, from != nullptr, from == nullptr ? 0 : from->offset});
}

std::vector<wire::PushSegment> Segments::take() { return std::exchange(segments_, {}); }

namespace {

constexpr std::size_t kReadBytes = 1024 * 1024;
constexpr std::size_t kPartBytes = 1024 * 1024;
constexpr int kPartsAhead = 6;
constexpr std::chrono::milliseconds kStopLook{200};  // how soon a wait sees that the push is stopped

// Counts parts that are not acknowledged, across the threads that send and take answers.
struct Parts {
  base::Mutex mu;  // rank: leaf
  base::CondVar cv;
  int open GUARDED_BY(mu) = 0;
  int error GUARDED_BY(mu) = 0;  // the first

  void ended(int with) {
    base::MutexLock lock(mu);
    --open;
    if (error == 0) error = with;
    cv.notify_all();
  }
};

// One large file on its way.
class LargeFile {
 public:
  LargeFile(SendContext& context, Task& task)
      : context_(context), task_(task), parts_(std::make_shared<Parts>()) {}

  // 0, or an errno; local() says whose.
  int send() {
    auto fd =
        ignore::open_beneath(context_.local_root.get(), task_.action.path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (!fd) return here(fd.error().as_errno());
    fd_ = std::move(*fd);
    const bool use_base = task_.tries == 0;  // what was wrong then may have been the base
    for (int tries = 0; tries < scan::kReadTries; ++tries) {
      if (context_.stop.stop_requested()) return ECANCELED;
      if (const int error = settle_digest(); error != 0) return here(error);
      ask_chunks(use_base && tries == 0);
      bool changed = false;
      const int error = send_parts(changed);
      const bool base_went = error == ENOENT || error == ENOTDIR || error == EISDIR || error == ENXIO;
      if (error != 0) return base_went && !base_.empty() && !local_ ? EAGAIN : error;
      if (!changed && !base::fault::active("push.changing", task_.action.path)) return 0;
    }
    return here(EAGAIN);
  }
  bool local() const { return local_; }

 private:
  int here(int error) {
    local_ = true;
    return error;
  }

  // The digest names what is staged, so it must be known before: read again when the file changed since.
  int settle_digest() {
    struct stat st {};
    if (::fstat(fd_.get(), &st) != 0) return errno;
    if (!S_ISREG(st.st_mode)) return ESTALE;
    auto& now = task_.action.now;
    if (scan::stat_info(st, context_.racy) == now.stat && !now.racy) return 0;
    auto read = scan::read_content(context_.local_root.get(), task_.action.path, index::Type::kFile,
                                   context_.racy, nullptr, context_.stop);
    if (!read) return read.error().as_errno();
    now.stat = read->stat;
    now.digest = read->digest;
    now.racy = read->racy;
    return 0;
  }

  void ask_chunks(bool use_base) {
    const auto digest = wire_digest(task_.action.now.digest);
    const bool staged = std::any_of(context_.stages.begin(), context_.stages.end(),
                                    [&](const wire::PushStage& stage) { return stage.digest == digest; });
    staged_ = base_ = RemoteChunks();
    if (staged) ask({context_.root.load(), true, digest, {}}, staged_);
    const auto& before = task_.action.before;
    const bool has_base =
        before && before->stat.type == index::Type::kFile && before->stat.size >= wire::kMaxChunk;
    if (use_base && has_base) ask({context_.root.load(), false, {}, task_.action.path}, base_);
  }

  void ask(const wire::PushChunks& call, RemoteChunks& into) {
    const auto reply = context_.calls.sync(wire::Method::kPushChunks, wire::encode(call),
                                           [&into](wire::ByteView bytes) { into.add(bytes); });
    if (reply.error != 0) into = RemoteChunks();
  }

  int send_parts(bool& changed) {
    wire::Hasher hasher;
    wire::Chunker chunker;
    std::vector<wire::Chunk> chunks;
    std::vector<std::byte> buffer(kReadBytes);
    window_.clear();
    window_at_ = window_used_ = 0;
    std::uint64_t at = 0;
    while (true) {
      if (context_.stop.stop_requested()) return ECANCELED;
      const ssize_t n = ::pread(fd_.get(), buffer.data(), buffer.size(), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return here(errno);
      const auto bytes = wire::ByteView(buffer).first(static_cast<std::size_t>(n));
      hasher.add(bytes);
      window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(window_used_));
      window_at_ += std::exchange(window_used_, 0);
      window_.insert(window_.end(), bytes.begin(), bytes.end());
      at += bytes.size();
      context_.bytes_read += bytes.size();
      chunks.clear();
      if (n == 0) {
        chunker.finish(chunks);
      } else {
        chunker.add(bytes, chunks);
      }
      for (const auto& chunk : chunks) {
        if (const int error = add_chunk(chunk); error != 0) return error;
      }
      if (n == 0) break;
    }
    if (const int error = flush(); error != 0) return error;
    if (const int error = wait_parts(0); error != 0) return error;
    changed = hasher.digest() != wire_digest(task_.action.now.digest);
    return 0;
  }

  int add_chunk(const wire::Chunk& chunk) {
    const auto bytes =
        wire::ByteView(window_).subspan(static_cast<std::size_t>(chunk.offset - window_at_), chunk.length);
    const bool there = staged_.at(chunk);
    const auto* const from = there ? nullptr : base_.find(chunk);
    if (!there) {
      segments_.add(chunk, from);
      if (from == nullptr) data_.insert(data_.end(), bytes.begin(), bytes.end());
    }
    window_used_ = static_cast<std::size_t>(chunk.offset + chunk.length - window_at_);
    return data_.size() >= kPartBytes || segments_.size() + 2 > wire::kMaxPushSegments ? flush() : 0;
  }

  int flush() {
    if (segments_.size() == 0) return 0;
    wire::PushPart part;
    part.stage = wire_digest(task_.action.now.digest);
    part.base = task_.action.path;
    part.segments = segments_.take();
    if (base::fault::active("push.damage", task_.action.path) && !data_.empty()) data_[0] ^= std::byte{1};
    part.body = {context_.root.load(), static_cast<std::uint32_t>(data_.size()),
                 data_.empty() ? wire::Bytes() : wire::pack(data_, level_for(context_.calls.rate()))};
    data_.clear();
    if (const int error = wait_parts(kPartsAhead); error != 0) return error;
    {
      base::MutexLock lock(parts_->mu);
      ++parts_->open;
    }
    const bool sent =
        context_.calls.send(wire::Method::kPushPart, wire::encode(part),
                            [parts = parts_](int error, const wire::Bytes&) { parts->ended(error); });
    if (!sent) parts_->ended(ECANCELED);
    return sent ? 0 : ECANCELED;
  }

  // Waits until at most `open` are under way.
  int wait_parts(int open) {
    const auto limit = Calls::Clock::now() + kCallDeadline;
    while (true) {
      {
        base::MutexLock lock(parts_->mu);
        if (parts_->open > open && parts_->error == 0) {
          (void)parts_->cv.wait_until(parts_->mu, Calls::Clock::now() + kStopLook);
        }
        if (parts_->open <= open || parts_->error != 0) return std::exchange(parts_->error, 0);
      }
      if (context_.stop.stop_requested() || context_.calls.stopped()) return ECANCELED;
      if (Calls::Clock::now() >= limit) return ETIMEDOUT;
    }
  }

  SendContext& context_;
  Task& task_;
  base::UniqueFd fd_;
  bool local_ = false;
  RemoteChunks staged_, base_;
  Segments segments_;
  wire::Bytes data_;
  wire::Bytes window_;  // bytes read that are in no chunk yet
  std::uint64_t window_at_ = 0;
  std::size_t window_used_ = 0;  // of its bytes: they are in chunks
  std::shared_ptr<Parts> parts_;
};

}  // namespace

bool send_large(SendContext& context, Job job, const JobDone& done) {
  auto end = std::make_shared<JobEnd>();
  auto& task = job.tasks.front();
  LargeFile file(context, task);
  const int error = file.send();
  if (error == ECANCELED) return false;
  const bool again = error == ECONNRESET || error == ESTALE;
  if (error != 0) {
    if (file.local()) {
      end->local.emplace_back(std::move(task), error);
    } else {
      end->tasks.push_back(std::move(task));
      wire::PushResult result;
      result.outcome = wire::PushOutcome::kFailed;
      result.error = error;
      if (again) end->error = error;
      end->results.push_back(result);
    }
    context.calls.post([done, end] { done(std::move(*end)); });
    return true;
  }
  auto entry = entry_of(task.action);
  entry.kind = wire::PushKind::kStaged;
  if (entry.mtime_ns != 0) entry.mtime_ns += context.skew_ns;
  wire::PushBatch batch;
  batch.entries.push_back(std::move(entry));
  end->tasks.push_back(std::move(task));
  const auto raw = wire::encode(batch);
  const wire::PushPacked message{context.root.load(), static_cast<std::uint32_t>(raw.size()),
                                 wire::pack(raw, 1)};
  return context.calls.send(wire::Method::kPushApply, wire::encode(message),
                            [done, end](int failed, const wire::Bytes& payload) {
                              end->error = failed;
                              if (failed == 0) {
                                auto reply = wire::decode<wire::PushReply>(payload);
                                if (reply && reply->results.size() == 1) {
                                  end->results = std::move(reply->results);
                                } else {
                                  end->error = EPROTO;
                                }
                              }
                              done(std::move(*end));
                            });
}

}  // namespace nearbox::push
