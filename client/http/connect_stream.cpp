// SPDX-License-Identifier: Apache-2.0
#include "client/http/connect_stream.h"

#include <charconv>
#include <limits>

#include <nettle/base64.h>
#include <nlohmann/json.hpp>

#include "client/api/error_code.h"
#include "client/http/bounded_json.h"

namespace nearbox::http {
namespace {

using nlohmann::json;

constexpr std::size_t kEnvelopeHead = 5;
constexpr std::uint8_t kFlagCompressed = 1;
constexpr std::uint8_t kKnownFlags = 3;

json parse(std::string_view text) { return parse_bounded(text); }

std::string text_of(const json& object, const char* name) {
  const auto it = object.find(name);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

// A number that protobuf's JSON may have written as text.
template <class T>
std::optional<T> number_of(const json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end() || it->is_null()) return T{0};
  T value{};
  if (it->is_string()) {
    const auto& text = it->get_ref<const std::string&>();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc{} && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
  }
  if (it->is_number_unsigned()) {
    const auto number = it->get<std::uint64_t>();
    constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<T>::max());
    return number <= kMost ? std::optional(static_cast<T>(number)) : std::nullopt;
  }
  if (it->is_number_integer() && std::is_signed_v<T>) {
    const auto number = it->get<std::int64_t>();
    constexpr auto kLeast = static_cast<std::int64_t>(std::numeric_limits<T>::min());
    return number >= kLeast ? std::optional(static_cast<T>(number)) : std::nullopt;
  }
  return std::nullopt;
}

RpcError rpc_error_of(const json& object) {
  return {api::printable(text_of(object, "code"), 40), api::printable(text_of(object, "message"))};
}

std::optional<api::RemoteEntry> entry_of(const json& object) {
  if (!object.is_object()) return std::nullopt;
  api::RemoteEntry entry;
  entry.name = text_of(object, "name");
  entry.path = text_of(object, "path");
  const std::string type = text_of(object, "type");
  using Type = api::RemoteEntry::Type;
  if (type == "FILE_TYPE_FILE") entry.type = Type::kFile;
  if (type == "FILE_TYPE_DIRECTORY") entry.type = Type::kDirectory;
  if (type == "FILE_TYPE_SYMLINK") entry.type = Type::kSymlink;
  const auto size = number_of<std::int64_t>(object, "size");
  const auto mode = number_of<std::uint32_t>(object, "mode");
  if (!size || *size < 0 || !mode) return std::nullopt;
  entry.size = static_cast<std::uint64_t>(*size);
  entry.mode = *mode & 07777;
  entry.modified_at = text_of(object, "modifiedTime");
  entry.symlink_target = text_of(object, "symlinkTarget");
  return entry;
}

bool take_data(const json& data, ProcessEvent& event) {
  for (const char* name : {"stdout", "stderr", "pty"}) {
    const auto it = data.find(name);
    if (it == data.end()) continue;
    if (!it->is_string()) return false;
    auto bytes = base64_decode(it->get_ref<const std::string&>());
    if (!bytes) return false;
    event.data = std::move(*bytes);
    event.kind =
        std::string_view(name) == "stderr" ? ProcessEvent::Kind::kStderr : ProcessEvent::Kind::kStdout;
    return true;
  }
  return true;
}

bool take_end(const json& end, ProcessEvent& event) {
  const auto code = number_of<std::int32_t>(end, "exitCode");
  const auto exited = end.find("exited");
  if (!code) return false;
  event.kind = ProcessEvent::Kind::kEnd;
  event.end.exit_code = *code;
  event.end.exited = exited != end.end() && exited->is_boolean() && exited->get<bool>();
  event.end.status = api::printable(text_of(end, "status"));
  return true;
}

}  // namespace

base::Result<std::size_t> parse_envelope(std::string_view bytes, Envelope& out) {
  if (bytes.size() < kEnvelopeHead) return std::size_t{0};
  const auto byte = [&](std::size_t i) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i]));
  };
  const std::uint32_t length = byte(1) << 24 | byte(2) << 16 | byte(3) << 8 | byte(4);
  if ((byte(0) & ~std::uint32_t{kKnownFlags}) != 0 || (byte(0) & kFlagCompressed) != 0) {
    return base::errno_error(EPROTO, "message of a stream has flags " + std::to_string(byte(0)));
  }
  if (length > kMaxEnvelope) return base::errno_error(EMSGSIZE, "message of a stream");
  if (bytes.size() < kEnvelopeHead + length) return std::size_t{0};
  out.flags = static_cast<std::uint8_t>(byte(0));
  out.payload = bytes.substr(kEnvelopeHead, length);
  return kEnvelopeHead + length;
}

std::string make_envelope(std::string_view text) {
  const auto length = static_cast<std::uint32_t>(text.size());
  std::string out(1, '\0');
  for (const unsigned shift : {24u, 16u, 8u, 0u}) out += static_cast<char>((length >> shift) & 0xff);
  out += text;
  return out;
}

base::Result<void> EnvelopeReader::feed(std::string_view bytes, const Take& take) {
  buffer_ += bytes;
  std::size_t at = 0;
  while (at < buffer_.size()) {
    if (ended_) return base::errno_error(EPROTO, "bytes after the end of a stream");
    Envelope envelope;
    auto taken = parse_envelope(std::string_view(buffer_).substr(at), envelope);
    if (!taken) return std::move(taken).error();
    if (*taken == 0) break;
    ended_ = envelope.is_end();
    if (auto done = take(envelope); !done) return done;
    at += *taken;
  }
  buffer_.erase(0, at);
  return {};
}

std::optional<RpcError> parse_rpc_error(std::string_view text) {
  const json object = parse(text);
  if (!object.is_object()) return std::nullopt;
  return rpc_error_of(object);
}

std::optional<RpcError> parse_end_message(std::string_view text) {
  const json object = parse(text);
  if (!object.is_object()) return RpcError{"internal", "the end of the stream is no JSON"};
  const auto it = object.find("error");
  if (it == object.end() || it->is_null()) return std::nullopt;
  if (!it->is_object()) return RpcError{"unknown", ""};
  return rpc_error_of(*it);
}

std::optional<ProcessEvent> parse_process_event(std::string_view text) {
  const json object = parse(text);
  if (!object.is_object()) return std::nullopt;
  const auto it = object.find("event");
  if (it == object.end() || !it->is_object()) return std::nullopt;
  const json& event = *it;
  ProcessEvent out;
  if (const auto start = event.find("start"); start != event.end()) {
    if (!start->is_object()) return std::nullopt;
    const auto pid = number_of<std::uint32_t>(*start, "pid");
    if (!pid) return std::nullopt;
    out.kind = ProcessEvent::Kind::kStart;
    out.pid = *pid;
  } else if (const auto data = event.find("data"); data != event.end()) {
    if (!data->is_object() || !take_data(*data, out)) return std::nullopt;
  } else if (const auto end = event.find("end"); end != event.end()) {
    if (!end->is_object() || !take_end(*end, out)) return std::nullopt;
  } else if (event.contains("keepalive")) {
    out.kind = ProcessEvent::Kind::kKeepalive;
  }
  return out;
}

std::optional<api::RemoteEntry> parse_entry(std::string_view text) {
  const json object = parse(text);
  if (!object.is_object()) return std::nullopt;
  const auto it = object.find("entry");
  return it == object.end() ? std::nullopt : entry_of(*it);
}

std::optional<std::vector<api::RemoteEntry>> parse_entries(std::string_view text) {
  const json object = parse_bounded(text, kMaxJsonListElements);
  if (!object.is_object()) return std::nullopt;
  std::vector<api::RemoteEntry> entries;
  const auto it = object.find("entries");
  if (it == object.end()) return entries;  // an empty list is left out
  if (!it->is_array() || it->size() > kMaxListEntries) return std::nullopt;
  for (const auto& item : *it) {
    auto entry = entry_of(item);
    if (!entry) return std::nullopt;
    entries.push_back(std::move(*entry));
  }
  return entries;
}

std::string base64_encode(std::string_view bytes) {
  std::string out(BASE64_ENCODE_RAW_LENGTH(bytes.size()), '\0');
  const auto* from = static_cast<const std::uint8_t*>(static_cast<const void*>(bytes.data()));
  base64_encode_raw(out.data(), bytes.size(), from);
  return out;
}

std::optional<std::string> base64_decode(std::string_view text) {
  base64_decode_ctx context;
  base64_decode_init(&context);
  std::string out(BASE64_DECODE_LENGTH(text.size()), '\0');
  std::size_t size = out.size();
  auto* into = static_cast<std::uint8_t*>(static_cast<void*>(out.data()));
  if (base64_decode_update(&context, &size, into, text.size(), text.data()) == 0) return std::nullopt;
  if (base64_decode_final(&context) == 0) return std::nullopt;
  out.resize(size);
  return out;
}

}  // namespace nearbox::http
