// SPDX-License-Identifier: Apache-2.0
#include "sync/index/index.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "sync/index/sqlite.h"

namespace nearbox::index {
namespace {

// The file's own marks: "nbix", and the version of the tables below.
constexpr std::int64_t kApplicationId = 0x6e626978;
constexpr std::int64_t kSchemaVersion = 1;

// WITHOUT ROWID keeps a path's row in the tree of paths itself: a scan reads one B-tree from end to end.
constexpr const char* kSchema = R"(
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries(
  path BLOB PRIMARY KEY, type INTEGER NOT NULL, mode INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, device INTEGER NOT NULL,
  digest BLOB NOT NULL, remote_version INTEGER NOT NULL, racy INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS observed(
  path BLOB PRIMARY KEY, type INTEGER NOT NULL, mode INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, device INTEGER NOT NULL,
  digest BLOB NOT NULL) WITHOUT ROWID;
)";

std::string_view text_of(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

void bind_row(Statement& to, std::string_view path, const StatInfo& stat, const Digest& digest) {
  to.bind_blob(1, path);
  to.bind_blob(9, text_of(digest));
  to.bind(2, static_cast<std::int64_t>(stat.type));
  to.bind(3, static_cast<std::int64_t>(stat.mode));
  to.bind(4, stat.size);
  to.bind(5, stat.mtime_ns);
  to.bind(6, stat.ctime_ns);
  to.bind(7, stat.inode);
  to.bind(8, stat.device);
}

// False: the row is not one that we wrote.
bool read_row(const Statement& from, StatInfo& stat, Digest& digest) {
  const auto type = from.number(1);
  const auto bytes = from.blob(8);
  if (type < 1 || type > 3 || bytes.size() != digest.size()) return false;
  stat.type = static_cast<Type>(type);
  stat.mode = static_cast<std::uint32_t>(from.number(2));
  stat.size = from.unsigned_number(3);
  stat.mtime_ns = from.number(4);
  stat.ctime_ns = from.number(5);
  stat.inode = from.unsigned_number(6);
  stat.device = from.unsigned_number(7);
  std::memcpy(digest.data(), bytes.data(), digest.size());
  return true;
}

base::Error damaged() { return base::errno_error(EUCLEAN, "index: a row is damaged"); }

bool valid_path(std::string_view path) {
  return path.size() <= kMaxPathBytes && path.find('\0') == std::string_view::npos;
}

base::Result<std::int64_t> pragma(const Database& db, const char* sql) {
  auto statement = Statement::prepare(db, sql);
  if (!statement) return std::move(statement).error();
  auto row = statement->step();
  if (!row) return std::move(row).error();
  return *row ? statement->number(0) : 0;
}

}  // namespace

class Index::Impl {
 public:
  explicit Impl(Database db) : db_(std::move(db)) {}

  base::Result<void> prepare(const Pairing& pairing) {
    auto id = pragma(db_, "PRAGMA application_id");
    if (!id) return std::move(id).error();
    auto tables = pragma(db_, "SELECT count(*) FROM sqlite_master");
    if (!tables) return std::move(tables).error();
    auto version = pragma(db_, "PRAGMA user_version");
    if (!version) return std::move(version).error();
    if (*tables != 0 && *id != kApplicationId) return base::errno_error(EUCLEAN, "index: the file is none");
    if (*version > kSchemaVersion) return base::errno_error(ESTALE, "index: written by a newer nearbox");
    if (auto mode = pragma(db_, "PRAGMA journal_mode = WAL"); !mode) return std::move(mode).error();
    if (auto done =
            db_.run("PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8192; "
                    "PRAGMA journal_size_limit = 16777216");
        !done) {
      return done;
    }
    if (*version < kSchemaVersion) {
      // The marks in the same transaction as the tables: an index that was half made is made again.
      const std::string sql = "BEGIN IMMEDIATE;" + std::string(kSchema) +
                              "PRAGMA application_id = " + std::to_string(kApplicationId) +
                              "; PRAGMA user_version = " + std::to_string(kSchemaVersion) + "; COMMIT";
      if (auto done = db_.run(sql.c_str()); !done) {
        (void)db_.run("ROLLBACK");
        return done;
      }
    }
    if (auto done = prepare_statements(); !done) return done;
    return own(pairing);
  }

  base::Result<void> apply(const Batch& batch) {
    auto begun = begin_->run();
    if (!begun) return begun;
    auto done = write(batch);
    if (done) done = commit_->run();
    if (!done) (void)db_.run("ROLLBACK");
    return done;
  }

  // Counting reads the whole index: an upper bound is kept, and made exact only when it meets the limit.
  base::Result<void> admit(std::size_t more) {
    if (at_most_ && *at_most_ + more <= kMaxEntries) {
      *at_most_ += more;
      return {};
    }
    auto count = pragma(db_, "SELECT count(*) FROM entries");
    if (!count) return std::move(count).error();
    at_most_ = static_cast<std::uint64_t>(*count) + more;
    if (*at_most_ > kMaxEntries) return base::errno_error(EFBIG, "index: too many entries");
    return {};
  }

  base::Result<std::string> get(const std::string& key) const {
    auto statement = Statement::prepare(db_, "SELECT value FROM meta WHERE key = CAST(?1 AS TEXT)");
    if (!statement) return std::move(statement).error();
    statement->bind_blob(1, key);
    auto row = statement->step();
    if (!row) return std::move(row).error();
    return *row ? std::string(statement->blob(0)) : std::string();
  }

  base::Result<void> set(const std::string& key, const std::string& value) {
    auto statement = Statement::prepare(db_, "INSERT OR REPLACE INTO meta VALUES(CAST(?1 AS TEXT), ?2)");
    if (!statement) return std::move(statement).error();
    statement->bind_blob(1, key);
    statement->bind_blob(2, value);
    return statement->run();
  }

  Database& db() { return db_; }

 private:
  base::Result<void> prepare_one(std::optional<Statement>& to, const char* sql) {
    auto statement = Statement::prepare(db_, sql);
    if (!statement) return std::move(statement).error();
    to.emplace(*std::move(statement));
    return {};
  }

  base::Result<void> prepare_statements() {
    const std::pair<std::optional<Statement>*, const char*> all[] = {
        {&begin_, "BEGIN IMMEDIATE"},
        {&commit_, "COMMIT"},
        {&put_, "INSERT OR REPLACE INTO entries VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)"},
        {&remove_, "DELETE FROM entries WHERE path = ?1"},
        {&observe_, "INSERT OR REPLACE INTO observed VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)"},
        {&forget_, "DELETE FROM observed WHERE path = ?1"},
    };
    for (const auto& [statement, sql] : all) {
      if (auto done = prepare_one(*statement, sql); !done) return done;
    }
    return {};
  }

  // A baseline says what *these* two directories agreed on: for others it would delete files.
  base::Result<void> own(const Pairing& pairing) {
    for (const auto& [key, value] : {std::pair<std::string, std::string>{"local_root", pairing.local_root},
                                     {"remote", pairing.remote}}) {
      auto stored = get(key);
      if (!stored) return std::move(stored).error();
      if (*stored == value) continue;
      if (!stored->empty()) return base::errno_error(ESTALE, "index: belongs to " + *stored);
      if (auto done = set(key, value); !done) return done;
    }
    return {};
  }

  base::Result<void> write(const Batch& batch) {
    for (const auto& path : batch.removes_) {
      for (auto* statement : {&*remove_, &*forget_}) {
        statement->bind_blob(1, path);
        if (auto done = statement->run(); !done) return done;
      }
    }
    for (const auto& [path, entry] : batch.puts_) {
      if (!valid_path(path)) return base::errno_error(EINVAL, "index: path");
      bind_row(*put_, path, entry.stat, entry.digest);
      put_->bind(10, entry.remote_version);
      put_->bind(11, std::int64_t{entry.racy ? 1 : 0});
      if (auto done = put_->run(); !done) return done;
      forget_->bind_blob(1, path);
      if (auto done = forget_->run(); !done) return done;
    }
    for (const auto& [path, seen] : batch.observes_) {
      if (!valid_path(path)) return base::errno_error(EINVAL, "index: path");
      bind_row(*observe_, path, seen.stat, seen.digest);
      if (auto done = observe_->run(); !done) return done;
    }
    for (const auto& path : batch.forgets_) {
      forget_->bind_blob(1, path);
      if (auto done = forget_->run(); !done) return done;
    }
    return {};
  }

  Database db_;
  std::optional<std::uint64_t> at_most_;  // entries
  std::optional<Statement> begin_;
  std::optional<Statement> commit_;
  std::optional<Statement> put_;
  std::optional<Statement> remove_;
  std::optional<Statement> observe_;
  std::optional<Statement> forget_;
};

Index::Index(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Index::~Index() = default;

base::Result<std::unique_ptr<Index>> Index::open(const std::string& path, const Pairing& pairing) {
  auto db = Database::open(path);
  if (!db) return std::move(db).error();
  auto impl = std::make_unique<Impl>(*std::move(db));
  if (auto done = impl->prepare(pairing); !done) return std::move(done).error().during(path);
  return std::unique_ptr<Index>(new Index(std::move(impl)));
}

base::Result<void> Index::apply(const Batch& batch) {
  if (batch.empty()) return {};
  if (auto done = impl_->admit(batch.puts_.size()); !done) return done;
  return impl_->apply(batch);
}

namespace {

std::string select_entries(const char* rest) {
  return std::string(
             "SELECT path, type, mode, size, mtime_ns, ctime_ns, inode, device, digest, remote_version, "
             "racy ") +
         "FROM entries " + rest;
}

base::Result<void> take_entries(Statement& rows,
                                const std::function<void(std::string_view, const Entry&)>& take) {
  Entry entry;
  while (true) {
    auto row = rows.step();
    if (!row) return std::move(row).error();
    if (!*row) return {};
    if (!read_row(rows, entry.stat, entry.digest) || !valid_path(rows.blob(0))) return damaged();
    entry.remote_version = rows.unsigned_number(9);
    entry.racy = rows.number(10) != 0;
    take(rows.blob(0), entry);
  }
}

}  // namespace

base::Result<void> Index::each(const std::function<void(std::string_view, const Entry&)>& take) const {
  auto rows = Statement::prepare(impl_->db(), select_entries("ORDER BY path").c_str());
  if (!rows) return std::move(rows).error();
  return take_entries(*rows, take);
}

base::Result<void> Index::each_at(std::string_view path,
                                  const std::function<void(std::string_view, const Entry&)>& take) const {
  auto own = find(path);
  if (!own) return std::move(own).error();
  if (*own) take(path, **own);
  auto rows =
      Statement::prepare(impl_->db(), select_entries("WHERE path > ?1 AND path < ?2 ORDER BY path").c_str());
  if (!rows) return std::move(rows).error();
  const auto first = std::string(path) + "/";
  const auto behind = std::string(path) + "0";  // the byte after the slash
  rows->bind_blob(1, first);
  rows->bind_blob(2, behind);
  return take_entries(*rows, take);
}

base::Result<std::optional<Entry>> Index::find(std::string_view path) const {
  auto rows = Statement::prepare(impl_->db(), select_entries("WHERE path = ?1").c_str());
  if (!rows) return std::move(rows).error();
  rows->bind_blob(1, path);
  std::optional<Entry> found;
  auto done = take_entries(*rows, [&](std::string_view, const Entry& entry) { found = entry; });
  if (!done) return std::move(done).error();
  return found;
}

base::Result<void> Index::each_observed(
    const std::function<void(std::string_view, const Observed&)>& take) const {
  auto rows = Statement::prepare(impl_->db(),
                                 "SELECT path, type, mode, size, mtime_ns, ctime_ns, inode, device, digest "
                                 "FROM observed ORDER BY path");
  if (!rows) return std::move(rows).error();
  Observed seen;
  while (true) {
    auto row = rows->step();
    if (!row) return std::move(row).error();
    if (!*row) return {};
    if (!read_row(*rows, seen.stat, seen.digest)) return damaged();
    take(rows->blob(0), seen);
  }
}

base::Result<std::uint64_t> Index::size() const {
  auto count = pragma(impl_->db(), "SELECT count(*) FROM entries");
  if (!count) return std::move(count).error();
  return static_cast<std::uint64_t>(*count);
}

base::Result<std::string> Index::get(const std::string& key) const { return impl_->get("user." + key); }

base::Result<void> Index::set(const std::string& key, const std::string& value) {
  return impl_->set("user." + key, value);
}

base::Result<void> Index::clear() {
  auto done = impl_->db().run("BEGIN IMMEDIATE; DELETE FROM entries; DELETE FROM observed; COMMIT");
  if (!done) (void)impl_->db().run("ROLLBACK");
  return done;
}

base::Result<void> Index::check() const {
  auto statement = Statement::prepare(impl_->db(), "PRAGMA integrity_check(1)");
  if (!statement) return std::move(statement).error();
  auto row = statement->step();
  if (!row) return std::move(row).error();
  if (!*row || statement->blob(0) != "ok") {
    return base::errno_error(EUCLEAN, "index: " + std::string(*row ? statement->blob(0) : "no answer"));
  }
  return {};
}

}  // namespace nearbox::index
