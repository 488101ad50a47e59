// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "sync/scan/scan.h"

namespace nearbox::push {

inline constexpr std::size_t kMaxListed = 50;  // of each list; all are counted

// What a push did, as programs and people are told.
struct Report {
  struct Skipped {
    std::string path;
    std::string reason;
  };
  struct Failure {
    std::string path;
    std::string code;  // of docs/errors.md
    std::string message;
  };
  struct Conflict {
    std::string path;
    std::string resolution;  // kept-both, kept-remote, kept-local
    std::string kept_as;
  };
  // A list that is cut, with its whole count.
  template <class T>
  struct List {
    std::vector<T> items;
    std::uint64_t count = 0;
    void add(T item) {
      ++count;
      if (items.size() < kMaxListed) items.push_back(std::move(item));
    }
  };

  std::string remote_path;
  std::uint64_t total_files = 0;
  std::uint64_t files_current = 0;                    // whose sandbox copy is theirs
  std::uint64_t files_sent = 0;                       // changed in the sandbox, in whatever way
  std::uint64_t files_renamed = 0, files_copied = 0;  // of those
  std::uint64_t files_deleted = 0;                    // in the sandbox; symlinks included
  std::uint64_t symlinks = 0, directories = 0;
  std::uint64_t bytes_total = 0;  // of all selected files
  std::uint64_t bytes_sent = 0;   // on the link, by this sync
  std::uint64_t bytes_received = 0;
  std::uint64_t requests = 0;
  std::uint64_t duration_ms = 0;
  List<Skipped> skipped;
  std::map<std::string, std::uint64_t> skipped_by_reason;
  std::vector<std::string> secrets;  // held back
  List<Failure> failures;
  std::uint64_t files_failed = 0;
  List<Conflict> conflicts;
  List<std::string> remote_changed;  // in the sandbox alone; left as they are
  std::uint64_t files_remote_changed = 0;
  List<Skipped> changes;  // of a dry run: path and what would be done
  std::vector<std::string> warnings;
  bool dry_run = false;
  bool first = false;  // there was no baseline

  void skip(const std::string& path, std::string_view reason);
  void fail(const std::string& path, std::string_view code, std::string message, bool file);
};

// Counts, left-out paths and problems of a scan. What could not be read is a failure; `is_file` says of what.
void take_scan(const scan::ScanResult& scanned, const std::function<bool(const std::string&)>& is_file,
               Report& report);
// `path` failed with an errno in the sandbox, or while it was read here.
void fail_remote(Report& report, const std::string& path, int error, bool file);
void fail_local(Report& report, const std::string& path, int error, bool file);

}  // namespace nearbox::push
