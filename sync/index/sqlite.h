// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/base/result.h"

struct sqlite3;
struct sqlite3_stmt;

namespace nearbox::index {

// Owns one connection. One thread at a time.
class Database {
 public:
  static base::Result<Database> open(const std::string& path);
  Database(Database&& from) noexcept;
  Database& operator=(Database&&) = delete;
  ~Database();

  base::Result<void> run(const char* sql);  // one or more statements without results
  base::Error error(std::string_view step) const;
  sqlite3* get() const { return db_; }

 private:
  explicit Database(sqlite3* db) : db_(db) {}
  sqlite3* db_;
};

// Owns one prepared statement; bind by position from 1, read columns from 0.
class Statement {
 public:
  static base::Result<Statement> prepare(const Database& db, const char* sql);
  Statement(Statement&& from) noexcept;
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  void bind(int at, std::int64_t value);
  void bind(int at, std::uint64_t value) { bind(at, static_cast<std::int64_t>(value)); }
  void bind_blob(int at, std::string_view bytes);  // must stay as they are until the next reset()

  // True: a row is there. False: done.
  base::Result<bool> step();
  base::Result<void> run();  // to its end, then ready to be bound anew
  void reset();

  std::int64_t number(int column) const;
  std::uint64_t unsigned_number(int column) const { return static_cast<std::uint64_t>(number(column)); }
  std::string_view blob(int column) const;  // until the next step

 private:
  Statement(const Database& db, sqlite3_stmt* statement) : db_(&db), statement_(statement) {}
  const Database* db_;
  sqlite3_stmt* statement_;
};

}  // namespace nearbox::index
