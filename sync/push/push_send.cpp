// SPDX-License-Identifier: Apache-2.0
#include <cerrno>

#include "client/base/fault.h"
#include "client/wire/pack.h"
#include "sync/push/push_run.h"

namespace nearbox::push {
namespace {

constexpr std::size_t kEntryBytes = 96;              // of an entry, beside its texts and data
constexpr std::size_t kMaxBatchBytes = 1792 * 1024;  // packed never above wire::kMaxPushBody
static_assert(kMaxBatchBytes + 64 * 1024 < wire::kMaxPushBody);

// Puts a file's bytes into its entry. An errno: it cannot be sent.
int fill_file(SendContext& context, Task& task, wire::PushEntry& entry) {
  auto loaded = load_file(context.local_root.get(), task.action.path, context.racy, wire::kMaxPushFile);
  if (!loaded) return loaded.error().as_errno();
  // It may have changed since the scan: what is sent is what is recorded.
  loaded->entry.remote_version = task.action.now.remote_version;
  task.action.now = loaded->entry;
  entry.mode = loaded->entry.stat.mode;
  entry.mtime_ns = loaded->entry.stat.mtime_ns;
  entry.size = loaded->entry.stat.size;
  entry.digest = wire_digest(loaded->entry.digest);
  entry.data = std::move(loaded->data);
  context.bytes_read += entry.size;
  if (base::fault::active("push.damage", entry.path) && !entry.data.empty()) entry.data[0] ^= std::byte{1};
  return 0;
}

}  // namespace

bool send_job(SendContext& context, Job job, const JobDone& done) {
  auto end = std::make_shared<JobEnd>();
  wire::PushBatch batch;
  std::size_t size = 0;
  for (auto& task : job.tasks) {
    auto entry = entry_of(task.action);
    if (entry.kind == wire::PushKind::kFile) {
      const int error = fill_file(context, task, entry);
      if (error == EFBIG) {
        end->large.push_back(std::move(task));
        continue;
      }
      if (error != 0) {
        end->local.emplace_back(std::move(task), error);
        continue;
      }
    }
    // Files may have grown since they were put together.
    const auto more = entry.data.size() + entry.path.size() + entry.source.size() + kEntryBytes;
    if (size + more > kMaxBatchBytes && !batch.entries.empty()) {
      end->again.push_back(std::move(task));
      continue;
    }
    size += more;
    if (entry.mtime_ns != 0) entry.mtime_ns += context.skew_ns;
    batch.entries.push_back(std::move(entry));
    end->tasks.push_back(std::move(task));
  }
  if (batch.entries.empty()) {
    context.calls.post([done, end] { done(std::move(*end)); });
    return true;
  }
  const auto raw = wire::encode(batch);
  const wire::PushPacked message{context.root.load(), static_cast<std::uint32_t>(raw.size()),
                                 wire::pack(raw, level_for(context.calls.rate()))};
  batch = {};
  return context.calls.send(wire::Method::kPushApply, wire::encode(message),
                            [done, end](int error, const wire::Bytes& payload) {
                              auto reply = error == 0 ? wire::decode<wire::PushReply>(payload) : std::nullopt;
                              const bool fits = reply && reply->results.size() == end->tasks.size();
                              end->error = error == 0 && !fits ? EPROTO : error;
                              if (fits) end->results = std::move(reply->results);
                              done(std::move(*end));
                            });
}

}  // namespace nearbox::push
