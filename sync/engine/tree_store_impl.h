// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "sync/engine/tree_store.h"
#include "sync/engine/tree_unpacker.h"

// What TreeStore is made of; internal to sync/engine.
namespace nearbox::sync {

// One Done: runs exactly once, whoever comes first.
class Completion {
 public:
  explicit Completion(TreeStore::Done fn) : fn_(std::move(fn)) {}
  void run(int error) {
    if (ran_.exchange(true)) return;
    const auto fn = std::move(fn_);
    if (fn) fn(error);
  }
  bool ran() const { return ran_; }
  std::atomic<base::Timers::Id> timer{0};

 private:
  TreeStore::Done fn_;
  std::atomic<bool> ran_{false};
};
using CompletionPtr = std::shared_ptr<Completion>;
using Completions = std::vector<CompletionPtr>;

// One kTree call, over all its reconnects. Of the link thread, but for what Impl guards.
struct Walk {
  using Then = std::function<void(int error, const std::set<NodeIndex>& skipped)>;
  std::uint64_t id = 0;
  std::string path;
  std::uint32_t depth = 0;  // as in wire::Tree
  TreeStore::Deadline deadline;
  Then then;
  std::uint32_t root = 0;
  std::uint64_t scan = 0;   // its name for Mirror::apply_block()
  std::uint64_t began = 0;  // operations that end later may be newer than what it says
  std::set<NodeIndex> skipped;
  std::set<NodeIndex> unsure;  // told things of that could not be taken: listed again
  TreeUnpacker unpacker;
  int broken = 0;
  bool flooded = false;                // more was told meanwhile than is remembered: of no use
  std::chrono::milliseconds stall{0};  // given up after so long without a chunk; 0: at the deadline alone
  std::atomic<std::chrono::steady_clock::time_point> heard{};
  std::atomic<bool> stalled{false};
  bool full = false;  // the budget is reached: what came stays
};
using WalkPtr = std::shared_ptr<Walk>;

struct TreeStore::Impl : api::LinkObserver, std::enable_shared_from_this<TreeStore::Impl> {
  using Clock = std::chrono::steady_clock;
  static constexpr auto kStreamDeadline = std::chrono::minutes(30);
  static constexpr auto kCallDeadline = std::chrono::seconds(60);
  static constexpr std::chrono::milliseconds kRescanStall = std::chrono::seconds(20);  // without a chunk
  static constexpr auto kRetryPause = std::chrono::milliseconds(20);
  static constexpr auto kReopenPause = std::chrono::seconds(1);
  static constexpr auto kHurryPatience = std::chrono::seconds(1);      // then the directory is listed alone
  static constexpr auto kRelistPause = std::chrono::milliseconds(20);  // doubled each time
  static constexpr int kRelistAttempts = 5;
  static constexpr int kListAttempts = 3;
  static constexpr std::size_t kRelistAtOnce = 16;
  static constexpr std::uint32_t kTreeCredit = 8 * 1024 * 1024;
  static constexpr std::size_t kMaxWaitingForRoot = 16384;
  static constexpr std::size_t kMaxSubtrees = 4096;

  // Keeps the store from being destroyed while a link or timer thread is in it. False: it is gone.
  class Use {
   public:
    explicit Use(Impl& impl) : impl_(impl), ok_(impl.enter()) {}
    ~Use() {
      if (ok_) impl_.leave();
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    explicit operator bool() const { return ok_; }

   private:
    Impl& impl_;
    const bool ok_;
  };
  class WalkSink;
  class AnswerSink;
  struct Subtree {
    bool known = false;
    bool loaded = false;
    wire::WatchKind watch = wire::WatchKind::kNone;
    int watch_error = 0;
    bool watch_asked = false;            // there was an answer, or an error
    std::uint64_t watch_generation = 0;  // of the agent that gave it
    std::uint64_t watch_tried = 0;       // generation, while a scan goes over all of them
    std::uint32_t watch_root = 0;
    wire::NodeId node{};
    wire::MountsReply mounts;
    bool asks_mounts = false;
    bool watched(std::uint64_t now) const {
      return watch != wire::WatchKind::kNone && watch_generation == now;
    }
    Completions known_waiters;
    Completions done_waiters;
    std::vector<std::function<void()>> after;  // run when it is loaded or was given up
  };
  struct DirWait {
    Completions waiters;
    int attempts = 0;
  };
  struct Run {  // of rescan()
    Completions waiters;
    std::deque<std::string> left;
    std::set<NodeIndex> skipped;
    std::vector<std::function<void()>> after;
    int error = 0;
  };
  struct Relist {
    std::deque<NodeIndex> left;
    std::set<NodeIndex> again;
    std::size_t running = 0;
    bool over = false;
    int attempt = 0;
    std::function<void()> then;
  };
  struct Operations {
    std::uint64_t under_way = 0;
    std::uint64_t touched = 0;  // op_epoch when one last began or ended
    std::uint64_t names_under_way = 0;
    std::uint64_t names_touched = 0;
    bool whole(std::uint64_t began) const { return under_way > 0 || touched > began; }
    bool any(std::uint64_t began) const {
      return whole(began) || names_under_way > 0 || names_touched > began;
    }
    bool idle() const { return under_way == 0 && names_under_way == 0; }
  };
  struct Recheck {  // of look_again()
    bool deep = false;
    bool running = false;
    bool again = false;       // asked for once more meanwhile
    std::uint64_t asked = 0;  // by recheck_count
    std::uint64_t asked_again = 0;
    int attempt = 0;
  };
  using Rechecks = std::vector<std::pair<NodeIndex, bool>>;  // directory, deep
  struct Barriers {                                          // the calls of one barrier()
    CompletionPtr whose;
    Deadline deadline;
    std::uint64_t instance = 0;
    std::uint64_t handled = 0;  // before it was asked
    std::size_t left = 0;
    std::uint64_t seq = 0;
    int error = 0;
  };
  struct Lost {
    NodeIndex top = kNoNode;
    bool recursive = false;
    std::uint64_t epoch = 0;
  };
  // What events told since the oldest walk that runs began; times are op_epoch.
  struct ToldLog {
    std::unordered_map<std::uint64_t, std::uint64_t> keys;  // of names and nodes
    std::map<wire::NodeId, std::uint64_t> listings;
    std::vector<Lost> lost;
    std::uint64_t last = 0;     // when something was told
    std::uint64_t flooded = 0;  // what was told before is not remembered
  };
  static constexpr std::size_t kMaxTold = 512 * 1024;
  static constexpr std::size_t kMaxToldListings = 64 * 1024;
  static constexpr std::size_t kMaxLost = 64;
  static constexpr std::size_t kMaxRechecks = 65536;  // then everything is
  static constexpr int kMaxRecheckAttempts = 12;      // of one that fails
  static constexpr auto kLongestRecheckPause = std::chrono::milliseconds(640);

  Impl(TreeStore& owner, api::AgentLink& to, base::Timers& with, base::Logger& logger)
      : store(owner), link(to), timers(with), log(logger), told_salt(random_salt()) {}
  static std::uint64_t random_salt();

  // ---- life (tree_store.cpp)
  bool enter() EXCLUDES(mu);
  void leave() EXCLUDES(mu);
  void close() EXCLUDES(mu);
  CompletionPtr completion(Done done, Deadline deadline) EXCLUDES(mu);
  void finish(const CompletionPtr& one, int error) EXCLUDES(mu);
  void finish(const Completions& all, int error) EXCLUDES(mu);
  void finish_soon(const CompletionPtr& one, int error);
  void later(std::chrono::milliseconds delay, std::function<void()> fn);

  // ---- root (tree_store.cpp)
  void on_up(const wire::Welcome& welcome, bool same_instance) noexcept override;
  void on_down(const base::Error&) noexcept override {}
  void open(const CompletionPtr& opener, Deadline deadline);
  void opened(const CompletionPtr& opener, Deadline deadline, std::uint64_t for_generation, int error,
              wire::ByteView payload);
  bool with_root(std::function<void(std::uint32_t)> fn) EXCLUDES(mu);

  // ---- calls (tree_calls.cpp)
  using Answer = std::function<void(int error, wire::ByteView payload)>;
  void track(std::uint64_t id, api::CallToken token) EXCLUDES(mu);
  void unary(wire::Method method, wire::Bytes payload, Deadline deadline, Answer answer);
  using Stated = std::function<void(int error)>;
  void stat_path(const std::string& path, Deadline deadline, Stated then);
  int link_prefixes(const std::vector<std::string>& prefixes, const std::vector<wire::StatResult>& results,
                    const Question& question);
  void walk(std::string path, std::uint32_t depth, Deadline deadline, Walk::Then then,
            std::chrono::milliseconds stall = {});
  void watch_stall(const WalkPtr& one, std::chrono::milliseconds left);
  void start_walk(const WalkPtr& one, std::uint32_t root);
  void walk_ended(const WalkPtr& one, int error, wire::ByteView payload);
  void apply(Walk& one, const std::vector<wire::TreeBlock>& blocks);
  bool frozen(NodeIndex node, std::uint64_t began) EXCLUDES(ops_mu);
  bool frozen_whole(NodeIndex node, std::uint64_t began) EXCLUDES(ops_mu);
  bool name_frozen(std::uint64_t began, const wire::NodeId& dir, std::string_view name) EXCLUDES(ops_mu);
  void walk_begins(Walk& one) EXCLUDES(ops_mu);
  void walk_is_over(const Walk& one) EXCLUDES(ops_mu);

  // ---- the budget (tree_budget.cpp)
  void go_by_directory();
  void enough(Walk& one);
  void distrust_below(const std::string& path);
  void shrink_soon(std::chrono::milliseconds pause);
  void shrink();
  bool may_shrink(const Mirror& mirror) const;
  void ask_back_soon(std::chrono::milliseconds pause);
  void ask_back();
  static constexpr std::size_t kNewestKept = 8;  // directories just listed, which somebody waits for
  // With the tree's lock held: a few milliseconds.
  static constexpr std::size_t kExamineAtOnce = 32;
  static constexpr std::size_t kDropAtOnce = 2048;
  static constexpr auto kSparedPause = std::chrono::milliseconds(5);
  static constexpr std::size_t kAskedOfAtOnce = 16384;  // nodes looked at with the tree's lock held
  static constexpr std::size_t kAskedAtOnce = 2048;     // told of these
  static constexpr auto kAskPause = std::chrono::milliseconds(20);         // between them
  static constexpr auto kAskAgainPause = std::chrono::milliseconds(1000);  // doubled when nothing came back
  static constexpr auto kLongestAskAgainPause = std::chrono::milliseconds(16000);

  // ---- what is loaded and wanted (tree_load.cpp)
  void load(const std::string& path, const CompletionPtr& known, const CompletionPtr& done);
  void load_known(const std::string& path, const CompletionPtr& known, const CompletionPtr& done);
  void start_subtree(const std::string& path);
  void subtree_known(const std::string& path);
  void subtree_over(const std::string& path, int error);
  void follow(const std::string& path, const std::string& above, const CompletionPtr& known,
              const CompletionPtr& done);
  void ask(NodeIndex dir);
  bool hurry(const std::string& path);
  void list_alone_if_waited(NodeIndex dir);
  void hurry_all();
  void list_alone(NodeIndex dir);
  void listed_alone(NodeIndex dir, int error);
  void resolve_waiters();
  void waited_may_be_gone(const Changes& changes);
  void reask(const std::string& below);
  void rescan(Completions waiters);
  void run_step(const std::shared_ptr<Run>& now);
  void rescan_subtree(const std::string& path, Deadline deadline, Walk::Then over);
  void watch_all_below(const std::string& path, std::function<void()> then);
  struct FirstLoad {  // a run waits for the first load of a subtree
    std::string path;
    std::chrono::steady_clock::time_point heard;  // of it, or the link was down
    std::atomic<bool> over{false};                // it ended, or the run went on without it
  };
  void wait_for_load(const std::shared_ptr<Run>& now, const std::shared_ptr<FirstLoad>& load,
                     std::chrono::milliseconds left);
  void run_over(const std::shared_ptr<Run>& over);
  NodeIndex next_to_relist(Relist& list, bool& over) EXCLUDES(mu);
  void relist_step(const std::shared_ptr<Relist>& list);
  void relist_soon(const std::set<NodeIndex>& dirs, int attempt, std::function<void()> then);

  // ---- what the agent tells (tree_watch.cpp)
  using Then = std::function<void()>;
  void watch(const std::string& path, Deadline deadline, Then then);
  void watch_over(const std::string& path, std::uint64_t for_generation, const wire::RootReply& root,
                  const wire::WatchReply& reply, int error) EXCLUDES(mu);
  void apply_changed(const wire::Changed& changed);
  void apply_state(const wire::NameState& state, Mirror& mirror, Changes& changes, Rechecks& again);
  bool watched_by_directory() EXCLUDES(mu);
  void look_beside(const wire::NameState& state, NodeIndex before, const Mirror& mirror, Rechecks& again);
  void look_at_names(NodeIndex node, const Mirror& mirror, Rechecks& again);
  void apply_node(const wire::NameState& state, Mirror& mirror, Changes& changes, Rechecks& again);
  void apply_lost(const wire::Lost& lost);
  std::uint64_t told_key(const wire::NodeId& dir, std::string_view name) const;
  void told_name(const wire::NodeId& dir, std::string_view name) EXCLUDES(ops_mu);
  void told_key_locked(std::uint64_t key) REQUIRES(ops_mu);
  void told_listing(const wire::NodeId& dir) EXCLUDES(ops_mu);
  void told_lost(NodeIndex top, bool recursive) EXCLUDES(ops_mu);
  bool told_since(std::uint64_t began, const wire::NodeId& dir, std::string_view name) EXCLUDES(ops_mu);
  bool listing_told_since(std::uint64_t began, const Mirror& mirror, NodeIndex dir) EXCLUDES(ops_mu);
  bool anything_told_since(std::uint64_t began, bool& flooded) EXCLUDES(ops_mu);
  void questions_over(std::uint64_t id) EXCLUDES(ops_mu);

  // ---- looking again, and the barrier (tree_recheck.cpp)
  void recheck(const Rechecks& dirs) EXCLUDES(mu);
  void recheck_all(const std::set<NodeIndex>& dirs) EXCLUDES(mu);
  void recheck_step();
  void rechecked(NodeIndex dir, int error, const std::set<NodeIndex>& skipped) EXCLUDES(mu);
  struct Passed {  // an agent's barrier that was passed already
    std::uint64_t instance = 0;
    std::uint64_t seq = 0;
  };
  void barrier(const CompletionPtr& whose, Deadline deadline, Passed passed);
  void await_events(const std::shared_ptr<Barriers>& all);
  void ask_mounts(const std::string& path) EXCLUDES(mu);
  void barrier_answered(const std::shared_ptr<Barriers>& all, int error, wire::ByteView payload);
  void barrier_handled(const std::shared_ptr<Barriers>& all, int error);
  void barrier_rechecked(const CompletionPtr& whose);
  void barrier_told(const CompletionPtr& whose) EXCLUDES(tell_mu);

  TreeStore& store;
  api::AgentLink& link;
  base::Timers& timers;
  base::Logger& log;

  std::atomic<std::chrono::milliseconds> rescan_stall{kRescanStall};
  std::atomic<std::size_t> budget{kDefaultBudget};
  std::atomic<bool> by_directory{false};
  std::atomic<bool> shrinking{false};      // shrink() is under way or planned
  std::atomic<bool> shrink_wanted{false};  // … by write(), and not planned yet
  std::atomic<std::uint64_t> collapsed_dirs{0};
  struct {  // of shrink(), one call of which follows the other
    std::size_t left = 0;
    bool unfinished = false;
  } pass;

  std::atomic<bool> asking_back{false};      // ask_back() is under way or planned
  std::atomic<bool> ask_back_wanted{false};  // … by write(), and not planned yet
  struct {                                   // of ask_back(), one call of which follows the other
    NodeIndex at = kNoNode;
    std::size_t names = 0;  // when the last pass ended
    std::chrono::milliseconds pause{0};
  } asked_back;

  base::Mutex mu;  // not held while the tree's lock is taken, nor while anything of others is called
  base::CondVar idle;
  bool closed GUARDED_BY(mu) = false;
  std::size_t active GUARDED_BY(mu) = 0;
  std::unordered_set<CompletionPtr> live GUARDED_BY(mu);
  std::uint64_t next_id GUARDED_BY(mu) = 1;
  std::map<std::uint64_t, api::CallToken> calls GUARDED_BY(mu);  // by our own number
  std::map<std::uint64_t, WalkPtr> walks GUARDED_BY(mu);

  std::string asked_root GUARDED_BY(mu);
  bool root_asked GUARDED_BY(mu) = false;
  bool root_valid GUARDED_BY(mu) = false;
  bool root_opening GUARDED_BY(mu) = false;
  bool root_was_open GUARDED_BY(mu) = false;
  std::uint32_t root_number GUARDED_BY(mu) = 0;
  std::string root_canonical GUARDED_BY(mu);
  std::uint64_t generation GUARDED_BY(mu) = 0;  // counts agent instances
  std::uint64_t instance GUARDED_BY(mu) = 0;
  std::vector<std::function<void(std::uint32_t)>> waiting_for_root GUARDED_BY(mu);

  std::map<std::string, Subtree> subtrees GUARDED_BY(mu);
  std::map<NodeIndex, DirWait> dir_waits GUARDED_BY(mu);
  std::set<NodeIndex> listing_alone GUARDED_BY(mu);
  std::shared_ptr<Run> run GUARDED_BY(mu);
  bool run_again GUARDED_BY(mu) = false;
  Completions next_run GUARDED_BY(mu);
  std::map<NodeIndex, Recheck> rechecks GUARDED_BY(mu);
  std::deque<NodeIndex> recheck_queue GUARDED_BY(mu);  // those to start
  std::size_t rechecks_running GUARDED_BY(mu) = 0;
  std::uint64_t recheck_count GUARDED_BY(mu) = 0;
  std::vector<std::pair<std::uint64_t, CompletionPtr>> recheck_waiters GUARDED_BY(mu);

  base::Mutex ops_mu;  // rank: leaf, taken under the tree's lock
  std::uint64_t op_epoch GUARDED_BY(ops_mu) = 1;
  std::unordered_map<NodeIndex, Operations> operations GUARDED_BY(ops_mu);
  struct Changing {
    std::uint32_t operations = 0;
    bool passed_over = false;  // by a walk
  };
  std::unordered_map<std::uint64_t, Changing> names_changing GUARDED_BY(ops_mu);  // by told_key()
  std::set<std::uint64_t> running_walks GUARDED_BY(ops_mu);                       // and questions
  ToldLog told_log GUARDED_BY(ops_mu);
  const std::uint64_t told_salt;
  std::atomic<std::uint64_t> changed_states{0}, lost_told{0}, unknown_told{0};
  EventStream* events = nullptr;  // set before the stream starts

  struct Told {
    Changes changes;
    ChangeListener* except;
  };
  base::Mutex tell_mu;  // rank: leaf, taken under the tree's lock
  base::CondVar told;
  std::deque<Told> to_tell GUARDED_BY(tell_mu);
  std::vector<ChangeListener*> listeners GUARDED_BY(tell_mu);
  std::uint64_t queued GUARDED_BY(tell_mu) = 0;  // numbers of what was handed in, and of what was told
  std::uint64_t told_until GUARDED_BY(tell_mu) = 0;
  std::vector<std::pair<std::uint64_t, CompletionPtr>> tell_waiters GUARDED_BY(tell_mu);
  bool telling GUARDED_BY(tell_mu) = false;
  ChangeListener* told_now GUARDED_BY(tell_mu) = nullptr;
  std::thread::id teller GUARDED_BY(tell_mu);
};

// Whether the subtree at `above` holds `path`.
inline bool covers(const std::string& above, const std::string& path) {
  return above.empty() || path == above ||
         (path.size() > above.size() && path.starts_with(above) && path[above.size()] == '/');
}

}  // namespace nearbox::sync
