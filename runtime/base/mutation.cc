#include "runtime/base/mutation.h"

#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace wukong {
namespace {

struct Mutation {
  const char* name;  // WHERE.WHAT
  const char* wrong;
};
constexpr Mutation kMutations[] = {
    {"core.admits_fenced_lives", "the root takes a contribution of a life of an aggregator that is not the newest"},
    {"core.admits_without_a_record", "a contribution is accepted and not written to the log"},
    {"core.answers_a_beat_twice", "a heartbeat that comes again is carried out again"},
    {"core.asks_nobody_after_a_lost_region", "workers are not asked what they hold after their aggregator is lost"},
    {"core.does_not_fence_the_earlier_life",
     "a process that joins under a name leaves the one before it in its rights"},
    {"core.forgets_the_term", "every life of the coordinator has term 1"},
    {"core.keeps_the_incarnation", "a process that joins again gets the incarnation that it had"},
    {"core.never_expires", "who is silent is never taken for dead"},
    {"engine.answers_before_durable", "answers leave before their records are on the disk"},
    {"engine.applies_twice", "each merge is applied twice"},
    {"engine.publishes_before_durable", "a version leaves before its record is on the disk"},
    {"engine.refusals_are_no_records", "a refusal is not written to the log"},
    {"engine.skips_the_finite_check", "contributions that are not finite are taken"},
    {"leaf.does_not_wait_for_the_decision",
     "a worker contributes to a new parent before it knows what became of its work"},
    {"leaf.forgets_what_is_undecided", "a worker does not name what it sent to a parent that is gone"},
    {"leaf.keeps_refused_leases", "a worker does not give back the samples of a refused contribution"},
    {"leaf.sends_committed_work_again", "a worker takes back what the root has committed"},
    {"ledger.admits_anything", "ranges of a contribution are not compared with the leases"},
    {"ledger.counts_the_budget_twice", "committed samples count twice"},
    {"ledger.forgets_a_commit_at_restart", "the last committed range is not restored"},
    {"ledger.forgets_leases_at_restart", "what was leased before a restart is leased again at once"},
    {"ledger.gives_a_token_twice", "leases have the same token"},
    {"ledger.ignores_custody", "what a fenced worker passed on is leased again"},
    {"ledger.keeps_a_lost_region", "the samples of a lost region are not leased again"},
    {"ledger.keeps_refused_ranges", "the samples of a contribution that the root refused are not leased again"},
    {"ledger.keeps_released_leases", "samples that are given back are not leased again"},
    {"log.cuts_one_record_too_many", "recovery cuts the last whole record as if it were torn"},
    {"log.keeps_a_partial_write", "what a failed write left stays in the segment"},
    {"log.removes_what_is_needed", "segments that the older snapshot needs are removed"},
    {"log.skip_directory_sync", "the name of a new segment is not synced"},
    {"log.skip_fsync", "the log is not synced"},
    {"log.trusts_a_failed_fsync", "after a failed fsync the same file is written on"},
    {"parent.asserts_nothing", "an aggregator does not tell a restarted coordinator what it holds"},
    {"parent.forgets_its_answers", "the verdict on an accepted contribution is not kept"},
    {"parent.forgets_its_custody", "an aggregator does not name what it holds of a fenced worker"},
    {"parent.forgets_the_fence", "a fenced life may attach again"},
    {"parent.names_one_range_of_each", "a region's contribution names the first range of each of its parts"},
    {"parent.names_ranges_twice", "a region's next contribution names the ranges of the last one too"},
    {"parent.no_bound_on_staleness", "contributions of any age are taken"},
    {"parent.one_version_too_stale", "contributions may be one version older than the bound"},
    {"parent.quarantine_without_end", "a sender is never let out of quarantine"},
    {"parent.takes_repeats", "a contribution that comes again is taken again"},
    {"parent.version_is_not_raised", "the next version has the number of the last"},
    {"parent.waits_for_the_idle", "a quorum waits for children that have nothing to do"},
    {"parent.wrong_weight", "contributions weigh by the share of their quorum once too often"},
    {"public.forgets_who_has_room", "who has said that there is room for more is not sent more"},
    {"public.resumes_one_version_late", "a stream that goes on leaves out a version of each fragment"},
    {"public.skips_the_digest", "a child does not check a version's digest"},
    {"recovery.ends_before_all_have_spoken", "leases are given out before their holders have spoken"},
    {"recovery.forgets_fences", "a restarted coordinator takes fenced members for live ones"},
    {"recovery.forgets_momentum", "a restarted root begins with no momentum"},
    {"recovery.forgets_the_notes", "a restarted root does not tell children what its version includes"},
    {"recovery.forgets_what_was_offered", "a restarted root does not know the sequences of its children"},
    {"recovery.no_lease_ceiling", "how far leases went is not written to the log"},
    {"recovery.tells_nobody", "a restarted root publishes nothing before the next merge"},
    {"replica.base_stays", "sending does not move the base"},
    {"replica.counts_included_work_twice", "what a version includes still counts as pending"},
    {"replica.rebase_drops_progress", "taking a version throws away what was not sent"},
    {"replica.sends_refused_work_again", "the progress of a refused contribution stays"},
    {"snapshot.older_one_loses_its_log", "segments that only the older snapshot needs are removed"},
    {"snapshot.public_copy_is_theta", "a snapshot has the parameters in place of the public copy"},
    {"snapshot.without_the_ledger", "a snapshot does not say what is committed"},
    {"snapshot.without_the_members", "a snapshot does not have the members"},
    {"snapshot.without_the_unmerged", "a snapshot does not have what waits for its quorum"},
};

// Constant once set.
const char* mutation = nullptr;
std::atomic<int64_t> passes{0};

}  // namespace

std::vector<std::pair<std::string, std::string>> Mutations() {
  std::vector<std::pair<std::string, std::string>> mutations;
  for (const Mutation& known : kMutations) mutations.emplace_back(known.name, known.wrong);
  return mutations;
}

absl::Status SetMutation(const std::string& name) {
#ifndef WUKONG_MUTATIONS
  return absl::FailedPreconditionError(
      absl::StrCat("this build has no mutation ", name, ": configure it with -DWUKONG_MUTATIONS=ON"));
#endif
  for (const Mutation& known : kMutations) {
    if (name != known.name) continue;
    mutation = known.name;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("there is no mutation '", name, "'"));
}

int64_t MutationPasses() { return passes; }

#ifdef WUKONG_MUTATIONS
bool Mutated(const char* name) {
  if (mutation == nullptr || std::strcmp(mutation, name) != 0) return false;
  ++passes;
  return true;
}
#endif

}  // namespace wukong
