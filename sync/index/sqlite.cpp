// SPDX-License-Identifier: Apache-2.0
#include "sync/index/sqlite.h"

#include <cerrno>
#include <chrono>
#include <utility>

#include <sqlite3.h>

namespace nearbox::index {
namespace {

constexpr std::chrono::milliseconds kBusyWait{5000};

int errno_of(int code, int system) {
  switch (code & 0xff) {
    case SQLITE_FULL:
      return ENOSPC;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return EBUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_MISMATCH:
      return EUCLEAN;
    case SQLITE_NOMEM:
      return ENOMEM;
    case SQLITE_READONLY:
      return EROFS;
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return EACCES;
    case SQLITE_TOOBIG:
      return EFBIG;
    case SQLITE_CANTOPEN:
    case SQLITE_IOERR:
      return system != 0 ? system : EIO;
    default:
      return EIO;
  }
}

}  // namespace

base::Result<Database> Database::open(const std::string& path) {
  sqlite3* raw = nullptr;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE |
                    SQLITE_OPEN_NOFOLLOW;
  const int rc = sqlite3_open_v2(path.c_str(), &raw, flags, nullptr);
  if (raw == nullptr) return base::errno_error(ENOMEM, "index " + path);
  Database db(raw);
  if (rc != SQLITE_OK) return db.error("index " + path);
  sqlite3_busy_timeout(raw, static_cast<int>(kBusyWait.count()));
  return db;
}

Database::Database(Database&& from) noexcept : db_(std::exchange(from.db_, nullptr)) {}

Database::~Database() {
  if (db_ != nullptr) sqlite3_close_v2(db_);
}

base::Error Database::error(std::string_view step) const {
  const int code = sqlite3_extended_errcode(db_);
  return base::errno_error(errno_of(code, sqlite3_system_errno(db_)),
                           std::string(step) + ": " + sqlite3_errmsg(db_));
}

base::Result<void> Database::run(const char* sql) {
  if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return error("index");
  return {};
}

base::Result<Statement> Statement::prepare(const Database& db, const char* sql) {
  sqlite3_stmt* raw = nullptr;
  if (sqlite3_prepare_v3(db.get(), sql, -1, SQLITE_PREPARE_PERSISTENT, &raw, nullptr) != SQLITE_OK) {
    return db.error("index");
  }
  return Statement(db, raw);
}

Statement::Statement(Statement&& from) noexcept
    : db_(from.db_), statement_(std::exchange(from.statement_, nullptr)) {}

Statement::~Statement() { sqlite3_finalize(statement_); }

void Statement::bind(int at, std::int64_t value) { sqlite3_bind_int64(statement_, at, value); }

void Statement::bind_blob(int at, std::string_view bytes) {
  // An empty view may have a null pointer, which would bind NULL.
  sqlite3_bind_blob64(statement_, at, bytes.empty() ? "" : bytes.data(), bytes.size(), SQLITE_STATIC);
}

base::Result<bool> Statement::step() {
  const int rc = sqlite3_step(statement_);
  if (rc == SQLITE_ROW) return true;
  if (rc == SQLITE_DONE) return false;
  return db_->error("index");
}

base::Result<void> Statement::run() {
  auto row = step();
  reset();
  if (!row) return std::move(row).error();
  return {};
}

void Statement::reset() { sqlite3_reset(statement_); }

std::int64_t Statement::number(int column) const { return sqlite3_column_int64(statement_, column); }

std::string_view Statement::blob(int column) const {
  const auto* data = static_cast<const char*>(sqlite3_column_blob(statement_, column));
  return {data == nullptr ? "" : data, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column))};
}

}  // namespace nearbox::index
