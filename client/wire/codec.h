// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

// The message codec: little-endian fixed-width integers, length-prefixed bytes, counted lists.
// One `fields()` function per message lists its members once; Writer and Reader both walk it.
// Chosen over protobuf-lite by measurement: docs/adr/0002-message-encoding.md.
namespace nearbox::wire {

using Bytes = std::vector<std::byte>;
using ByteView = std::span<const std::byte>;

inline ByteView as_view(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }
inline std::string_view as_text(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Appends fields to a byte vector. Never fails: limits are the Reader's concern, and what we write
// ourselves was validated before.
class Writer {
 public:
  static constexpr bool kReads = false;
  explicit Writer(Bytes& out) : out_(out) {}

  template <class T>
  requires(std::is_integral_v<T> || std::is_enum_v<T>) void num(const T& value) {
    const auto* const raw_bytes = reinterpret_cast<const std::byte*>(&value);
    out_.insert(out_.end(), raw_bytes, raw_bytes + sizeof(T));  // x86-64 and arm64 are little-endian
  }
  void bytes(const std::string& value, std::size_t /*limit*/) { raw(as_view(value)); }
  void bytes(const Bytes& value, std::size_t /*limit*/) { raw(value); }
  template <std::size_t N>
  void fixed(const std::array<std::byte, N>& value) {
    out_.insert(out_.end(), value.begin(), value.end());
  }
  template <class T>
  void list(const std::vector<T>& values, std::size_t /*limit*/) {
    num(static_cast<std::uint32_t>(values.size()));
    for (const auto& value : values) fields(*this, value);
  }
  void strings(const std::vector<std::string>& values, std::size_t /*limit*/, std::size_t each) {
    num(static_cast<std::uint32_t>(values.size()));
    for (const auto& value : values) bytes(value, each);
  }

 private:
  void raw(ByteView value) {
    num(static_cast<std::uint32_t>(value.size()));
    out_.insert(out_.end(), value.begin(), value.end());
  }
  Bytes& out_;
};

// Reads fields from foreign bytes. The first violation (too short, over a limit) makes ok() false;
// every later read yields zero or empty. Never reads outside the view, never allocates more than
// the view could fill.
class Reader {
 public:
  static constexpr bool kReads = true;
  explicit Reader(ByteView in) : in_(in) {}

  template <class T>
  requires(std::is_integral_v<T> || std::is_enum_v<T>) void num(T& value) {
    value = T{};
    if (!need(sizeof(T))) return;
    if constexpr (std::is_same_v<T, bool>) {
      value = in_[at_] != std::byte{0};
    } else {
      std::memcpy(&value, in_.data() + at_, sizeof(T));
    }
    at_ += sizeof(T);
  }
  void bytes(std::string& value, std::size_t limit) { value = as_text(view(limit)); }
  void bytes(Bytes& value, std::size_t limit) {
    const auto v = view(limit);
    value.assign(v.begin(), v.end());
  }
  template <std::size_t N>
  void fixed(std::array<std::byte, N>& value) {
    value.fill(std::byte{0});
    if (!need(N)) return;
    std::memcpy(value.data(), in_.data() + at_, N);
    at_ += N;
  }
  template <class T>
  void list(std::vector<T>& values, std::size_t limit) {
    values.clear();
    std::uint32_t count = 0;
    num(count);
    if (count > limit || count > in_.size() - at_) ok_ = false;  // each element is >= 1 byte
    if (ok_) values.reserve(std::min<std::size_t>(count, kReserve));
    for (std::uint32_t i = 0; ok_ && i < count; ++i) {
      values.emplace_back();
      fields(*this, values.back());
    }
    if (!ok_) values.clear();
  }
  void strings(std::vector<std::string>& values, std::size_t limit, std::size_t each) {
    values.clear();
    std::uint32_t count = 0;
    num(count);
    if (count > limit || count > in_.size() - at_) ok_ = false;
    for (std::uint32_t i = 0; ok_ && i < count; ++i) {
      values.emplace_back();
      bytes(values.back(), each);
    }
    if (!ok_) values.clear();
  }
  // Length-prefixed bytes without a copy; valid as long as the input is.
  ByteView view(std::size_t limit) {
    std::uint32_t size = 0;
    num(size);
    if (size > limit || !need(size)) {
      ok_ = false;
      return {};
    }
    const auto v = in_.subspan(at_, size);
    at_ += size;
    return v;
  }
  ByteView rest() const { return in_.subspan(at_); }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && at_ == in_.size(); }
  void fail() { ok_ = false; }

 private:
  static constexpr std::size_t kReserve = 256;  // elements: a count alone must not cost much memory
  bool need(std::size_t n) {
    if (ok_ && in_.size() - at_ >= n) return true;
    ok_ = false;
    return false;
  }
  ByteView in_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

// Counts the bytes that Writer would append, so that a message is written into one allocation.
class Sizer {
 public:
  static constexpr bool kReads = false;
  template <class T>
  requires(std::is_integral_v<T> || std::is_enum_v<T>) void num(const T& /*value*/) { size_ += sizeof(T); }
  void bytes(const std::string& value, std::size_t /*limit*/) { size_ += kPrefix + value.size(); }
  void bytes(const Bytes& value, std::size_t /*limit*/) { size_ += kPrefix + value.size(); }
  template <std::size_t N>
  void fixed(const std::array<std::byte, N>& /*value*/) {
    size_ += N;
  }
  template <class T>
  void list(const std::vector<T>& values, std::size_t /*limit*/) {
    size_ += kPrefix;
    for (const auto& value : values) fields(*this, value);
  }
  void strings(const std::vector<std::string>& values, std::size_t /*limit*/, std::size_t /*each*/) {
    size_ += kPrefix;
    for (const auto& value : values) size_ += kPrefix + value.size();
  }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t kPrefix = sizeof(std::uint32_t);
  std::size_t size_ = 0;
};

// Writes what Sizer counted into a buffer of that size: a field is one store, where Writer's growth
// costs three times as much (docs/adr/0002-message-encoding.md).
class FixedWriter {
 public:
  static constexpr bool kReads = false;
  explicit FixedWriter(std::byte* out) : at_(out) {}
  template <class T>
  requires(std::is_integral_v<T> || std::is_enum_v<T>) void num(const T& value) {
    std::memcpy(at_, &value, sizeof(T));
    at_ += sizeof(T);
  }
  void bytes(const std::string& value, std::size_t /*limit*/) { raw(as_view(value)); }
  void bytes(const Bytes& value, std::size_t /*limit*/) { raw(value); }
  template <std::size_t N>
  void fixed(const std::array<std::byte, N>& value) {
    std::memcpy(at_, value.data(), N);
    at_ += N;
  }
  template <class T>
  void list(const std::vector<T>& values, std::size_t /*limit*/) {
    num(static_cast<std::uint32_t>(values.size()));
    for (const auto& value : values) fields(*this, value);
  }
  void strings(const std::vector<std::string>& values, std::size_t /*limit*/, std::size_t each) {
    num(static_cast<std::uint32_t>(values.size()));
    for (const auto& value : values) bytes(value, each);
  }

 private:
  void raw(ByteView value) {
    num(static_cast<std::uint32_t>(value.size()));
    if (!value.empty()) std::memcpy(at_, value.data(), value.size());
    at_ += value.size();
  }
  std::byte* at_;
};

template <class M>
Bytes encode(const M& message) {
  Sizer sizer;
  fields(sizer, message);
  Bytes out(sizer.size());
  FixedWriter writer(out.data());
  fields(writer, message);
  return out;
}

// The message, or nothing when the bytes are not exactly one valid M.
template <class M>
std::optional<M> decode(ByteView in) {
  M message{};
  Reader reader(in);
  fields(reader, message);
  if (!reader.done()) return std::nullopt;
  return message;
}

// The two overloads of fields() for a message whose members Type_fields() lists.
#define NEARBOX_FIELDS(Type)           \
  template <class Ar>                  \
  void fields(Ar& ar, Type& m) {       \
    Type##_fields(ar, m);              \
  }                                    \
  template <class Ar>                  \
  void fields(Ar& ar, const Type& m) { \
    Type##_fields(ar, m);              \
  }

}  // namespace nearbox::wire
