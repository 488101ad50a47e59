// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>

namespace nearbox::base {

// Why an operation failed: a code for programs, a context for people.
//
// Units: `code` is an errno (generic_category) or a nearbox code (see client/api/error_code.h).
// `context` names the steps, outermost first, joined with ": ". It never holds keys or tokens.
struct [[nodiscard]] Error {
  std::error_code code;
  std::string context;

  // Adds the step that was being done: "open a.c" during "hash" reads "hash: open a.c".
  Error&& during(std::string_view step) && {
    context = context.empty() ? std::string(step) : std::string(step) + ": " + context;
    return std::move(*this);
  }

  // The text a person reads: context and the code's own message.
  std::string message() const { return context.empty() ? code.message() : context + ": " + code.message(); }

  // The errno a file system answers with; EIO where the code is no errno.
  int as_errno() const {
    return code.category() == std::generic_category() || code.category() == std::system_category()
               ? code.value()
               : EIO;
  }
};

inline Error errno_error(int err, std::string context = {}) {
  return Error{std::error_code(err, std::generic_category()), std::move(context)};
}
inline Error last_errno(std::string context = {}) { return errno_error(errno, std::move(context)); }

// A value or an Error. Access to the missing side ends the process: that is a bug, never input.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(*-explicit-*)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(*-explicit-*)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return *check(); }
  const T& value() const& { return *const_cast<Result*>(this)->check(); }
  T&& value() && { return std::move(*check()); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return check(); }
  const T* operator->() const { return const_cast<Result*>(this)->check(); }

  Error& error() & { return *check_error(); }
  const Error& error() const& { return *const_cast<Result*>(this)->check_error(); }
  Error&& error() && { return std::move(*check_error()); }

 private:
  T* check() {
    auto* value = std::get_if<0>(&state_);
    if (value == nullptr) std::abort();
    return value;
  }
  Error* check_error() {
    auto* error = std::get_if<1>(&state_);
    if (error == nullptr) std::abort();
    return error;
  }
  std::variant<T, Error> state_;
};

// Success or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(*-explicit-*)
  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  Error& error() & { return check(); }
  const Error& error() const& { return const_cast<Result*>(this)->check(); }
  Error&& error() && { return std::move(check()); }

 private:
  Error& check() {
    if (!error_) std::abort();
    return *error_;
  }
  std::optional<Error> error_;
};

}  // namespace nearbox::base
