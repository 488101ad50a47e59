// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

namespace nearbox::base {

// A key or token. It prints as stars; reveal() is for the one place that sends it.
class Secret {
 public:
  Secret() = default;
  explicit Secret(std::string value) : value_(std::move(value)) {}
  bool empty() const { return value_.empty(); }
  const std::string& reveal() const { return value_; }
  std::string printable() const { return value_.empty() ? "" : "********"; }

  // Equal in a time that depends on the lengths alone.
  friend bool equal_constant_time(const Secret& a, const Secret& b) {
    if (a.value_.size() != b.value_.size()) return false;
    unsigned char diff = 0;
    for (std::size_t i = 0; i < a.value_.size(); ++i) {
      diff = static_cast<unsigned char>(
          diff | (static_cast<unsigned char>(a.value_[i]) ^ static_cast<unsigned char>(b.value_[i])));
    }
    return diff == 0;
  }

 private:
  std::string value_;
};

}  // namespace nearbox::base
