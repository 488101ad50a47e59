// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <poll.h>
#include <sys/vfs.h>

#include "tools/sandbox_server/dir_watcher.h"
#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/envd_stream.h"
#include "tools/sandbox_server/text.h"
#include "tools/sandbox_server/watch_table.h"

namespace nearbox::sandbox_server {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// File systems whose changes may come from elsewhere, unseen by inotify. Source: statfs(2); the list:
// e2b-dev/infra 54693ff, packages/envd/internal/services/filesystem/utils.go.
bool network_mount(const std::string& path) {
  constexpr std::array<std::uint32_t, 5> kTypes{0x6969, 0xff534d42, 0x517b, 0xfe534d42, 0x65735546};
  struct statfs fs {};
  if (::statfs(path.c_str(), &fs) != 0) return false;
  const auto type = static_cast<std::uint32_t>(fs.f_type);
  return std::find(kTypes.begin(), kTypes.end(), type) != kTypes.end();
}

struct Opened {
  DirWatcher watcher;
  EventJson to_json;
};

RpcReply watch_error(const base::Error& error, const std::string& path) {
  const int err = error.as_errno();
  if (err == ENOENT) return RpcReply::error("not_found", "path " + path + " not found");
  if (err == ENOTDIR) return RpcReply::error("invalid_argument", "path " + path + " is not a directory");
  return RpcReply::error("internal", error.context + ": " + errno_text(err));
}

// Opens what a request asks for; throws json's exceptions for wrong types. `refused` says why not.
std::optional<Opened> open_watch(const EnvdContext& context, const User& user, const json& request,
                                 RpcReply& refused) {
  const auto path = resolve_path(request.value("path", std::string()), user);
  if (!path) {
    refused = RpcReply::error("invalid_argument", path.error().context);
    return std::nullopt;
  }
  const bool recursive = request.value("recursive", false);
  const bool with_entry = request.value("includeEntry", false);
  const bool any_mount = request.value("allowNetworkMounts", false);
  if (!any_mount && network_mount(*path)) {
    refused = RpcReply::error("invalid_argument", "cannot watch path on network filesystem: " + *path);
    return std::nullopt;
  }
  auto watcher =
      DirWatcher::open(*path, recursive ? DirWatcher::Depth::kRecursive : DirWatcher::Depth::kFlat);
  if (!watcher) {
    refused = watch_error(watcher.error(), *path);
    return std::nullopt;
  }
  auto to_json = [root = watcher->root(), with_entry, mode = context.users.mode()](const WatchEvent& event) {
    json out = {{"name", event.name}, {"type", name_of(event.kind)}};
    const bool there = event.kind != WatchKind::kRemove && event.kind != WatchKind::kRename;
    if (with_entry && there) {
      const auto where = event.name == "." ? root : (root == "/" ? "" : root) + "/" + event.name;
      if (auto entry = entry_of(where, IdNames(mode))) out["entry"] = std::move(*entry);
    }
    return out;
  };
  return Opened{std::move(*watcher), std::move(to_json)};
}

// Sends one batch of events. False: the stream has been ended or is broken.
bool send_events(Exchange& exchange, DirWatcher& watcher, const EventJson& to_json) {
  const auto events = watcher.read();
  if (!events) {
    end_stream(exchange, RpcReply::error("internal", "watcher error: " + events.error().context));
    return false;
  }
  for (const auto& event : *events) {
    try {
      if (!send_message(exchange, {{"filesystem", to_json(event)}})) return false;
    } catch (const json::exception&) {  // a name, or where a link leads
      end_stream(exchange, RpcReply::error("unknown",
                                           "error sending filesystem event: marshal message: string field "
                                           "contains invalid UTF-8"));
      return false;
    }
  }
  return true;
}

}  // namespace

void watch_stream(EnvdContext& context, Exchange& exchange, const User& user) {
  std::string buffer;
  const auto message = next_message(exchange, buffer);
  const auto limits = limits_of(exchange.head());
  if (!message || !*message || !limits.error.empty())
    return end_stream(
        exchange, RpcReply::error("invalid_argument", limits.error.empty() ? "no message" : limits.error));
  RpcReply refused;
  std::optional<Opened> opened;
  try {
    opened = open_watch(context, user, **message, refused);
  } catch (const json::exception& e) {
    refused = RpcReply::error("invalid_argument", e.what());
  }
  if (!opened) return end_stream(exchange, refused);
  begin_stream(exchange);
  if (!send_message(exchange, {{"start", json::object()}})) return;
  auto next_keepalive = Clock::now() + limits.keepalive;
  while (true) {
    auto wake = next_keepalive;
    if (limits.deadline) wake = std::min(wake, *limits.deadline);
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(wake - Clock::now());
    auto& stream = exchange.stream();
    pollfd fds[3] = {
        {opened->watcher.fd(), POLLIN, 0}, {stream.fd(), POLLRDHUP, 0}, {stream.stop_fd(), POLLIN, 0}};
    if (::poll(fds, 3, static_cast<int>(std::max<std::int64_t>(left.count(), 0))) < 0 && errno != EINTR)
      return exchange.close_after();
    if (fds[1].revents != 0 || fds[2].revents != 0) return exchange.close_after();
    if (fds[0].revents != 0) {
      if (!send_events(exchange, opened->watcher, opened->to_json)) return exchange.close_after();
      next_keepalive = Clock::now() + limits.keepalive;
    }
    if (limits.deadline && Clock::now() >= *limits.deadline)
      return end_stream(exchange, RpcReply::error("deadline_exceeded", "context deadline exceeded"));
    if (Clock::now() < next_keepalive) continue;
    if (!send_message(exchange, {{"keepalive", json::object()}})) return exchange.close_after();
    next_keepalive = Clock::now() + limits.keepalive;
  }
}

RpcReply watcher_call(EnvdContext& context, const User& user, std::string_view method, const json& request) {
  RpcReply reply;
  if (method == "CreateWatcher") {
    auto opened = open_watch(context, user, request, reply);
    if (!opened) return reply;
    auto id = context.watchers.add(std::move(opened->watcher), std::move(opened->to_json));
    if (!id) return watch_error(id.error(), "");
    reply.body["watcherId"] = *id;
    return reply;
  }
  const auto id = request.value("watcherId", std::string());
  const auto missing = RpcReply::error("not_found", "watcher with id " + id + " not found");
  if (method == "RemoveWatcher") return context.watchers.remove(id) ? reply : missing;
  const auto watcher = context.watchers.find(id);
  if (!watcher) return missing;
  auto events = watcher->drain();
  if (!events) return RpcReply::error("internal", "watcher error: " + events.error().context);
  if (!events->empty()) reply.body["events"] = std::move(*events);
  return reply;
}

}  // namespace nearbox::sandbox_server
