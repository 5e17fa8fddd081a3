#include "launch/status_text.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/coordinator.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kTrouble[] = "NOT ACKNOWLEDGING: ";

double Percent(int64_t part, int64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

double ComputeShare(const MemberUsage& usage) {
  return usage.wall_seconds() > 0 ? usage.compute_seconds() / usage.wall_seconds() : 0.0;
}

// How long ago, in at most seven characters.
std::string Ago(double seconds) {
  if (seconds < 100) return absl::StrFormat("%.1f s", seconds);
  if (seconds < 100 * 60) return absl::StrFormat("%.0f min", seconds / 60);
  return absl::StrFormat("%.0f h", seconds / 3600);
}

const char* RoleWord(Role role) { return role == ROLE_AGGREGATOR ? "aggregator" : "worker"; }

// Sorted by name, for the map of a message is in no order.
std::map<std::string, int64_t> Refused(const StatusReply& status) {
  return {status.refused().begin(), status.refused().end()};
}

std::vector<const MemberStatus*> SortedMembers(const StatusReply& status) {
  std::vector<const MemberStatus*> members;
  for (const MemberStatus& member : status.members()) members.push_back(&member);
  std::stable_sort(members.begin(), members.end(), [](const MemberStatus* a, const MemberStatus* b) {
    if (a->region() != b->region()) return a->region() < b->region();
    if (a->role() != b->role()) return a->role() == ROLE_AGGREGATOR;
    return a->name() < b->name();
  });
  return members;
}

// Appends a line "  name      value".
void Line(const char* name, const std::string& value, std::string* text) {
  absl::StrAppend(text, absl::StrFormat("  %-20s %s\n", name, value));
}

// The member of an object, or null; also where there is no object. A report may be of another version, or be damaged.
const Json& At(const Json& object, const char* key) {
  static const Json* const nothing = new Json();
  const auto found = object.find(key);
  return found == object.end() ? *nothing : *found;
}

double Number(const Json& object, const char* key) {
  const Json& value = At(object, key);
  return value.is_number() ? value.get<double>() : 0.0;
}

int64_t Count(const Json& object, const char* key) { return static_cast<int64_t>(Number(object, key)); }

std::string Words(const Json& object, const char* key) {
  const Json& value = At(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

std::map<std::string, double> Shares(std::map<std::string, double> seconds, double of) {
  for (auto& [reason, share] : seconds) share = of > 0 ? share / of : 0;
  return seconds;
}

std::map<std::string, double> WaitingShares(const StatusReply& status) {
  std::map<std::string, double> seconds;
  double wall = 0;
  for (const MemberStatus& member : status.members()) {
    if (member.role() != ROLE_WORKER) continue;
    wall += member.usage().wall_seconds();
    for (const auto& [reason, waited] : member.usage().waiting_seconds()) seconds[reason] += waited;
  }
  return Shares(std::move(seconds), wall);
}

}  // namespace

std::string WaitingText(const std::map<std::string, double>& shares) {
  static const auto* const kWords = new std::map<std::string, std::string>{{"parameters", "waiting for parameters"},
                                                                           {"data", "waiting for data"},
                                                                           {"answer", "waiting for answers"},
                                                                           {"others", "waiting for others"},
                                                                           {"nothing_left", "no data left"}};
  std::string text;
  for (const auto& [reason, share] : shares) {
    if (share < 0.0005) continue;  // It would read 0.0%.
    const auto words = kWords->find(reason);
    absl::StrAppend(&text, text.empty() ? "; " : ", ", words == kWords->end() ? reason : words->second,
                    absl::StrFormat(" %.1f%%", 100 * share));
  }
  return text;
}

std::string ProgressLine(const StatusReply& status, const std::optional<WanBytes>& wan) {
  if (status.phase() == "starting" && status.tokens_committed() == 0) {
    return absl::StrCat("  starting: waiting for ", status.detail().empty() ? "the first loss" : status.detail());
  }
  const auto budget = static_cast<double>(status.tokens_budget());
  const std::string head =
      absl::StrFormat("%6.1fs %-8s %5.1f%% of %s tokens  ", status.seconds(), status.phase(),
                      Percent(status.tokens_committed(), status.tokens_budget()),
                      budget < 1e6 ? absl::StrFormat("%.1fk", budget / 1e3) : absl::StrFormat("%.2fM", budget / 1e6));
  if (!status.storage_trouble().empty()) return absl::StrCat(head, kTrouble, status.storage_trouble());
  return absl::StrCat(
      head,
      absl::StrFormat("loss %5s  %6.0f tok/s  computing %5.1f%%  staleness %.1f",
                      status.loss() > 0 ? absl::StrFormat("%.3f", status.loss()) : "-", status.tokens_per_second(),
                      100 * status.compute_share(), status.staleness_mean()),
      wan.has_value() ? absl::StrFormat("  WAN up %.1f down %.1f MB", static_cast<double>(wan->up) / 1e6,
                                        static_cast<double>(wan->down) / 1e6)
                      : "");
}

std::string StatusText(const StatusReply& status) {
  std::string text =
      absl::StrFormat("%s: %s, %.1f s since training began\n", status.run(), status.phase(), status.seconds());
  if (!status.storage_trouble().empty()) absl::StrAppend(&text, kTrouble, status.storage_trouble(), "\n");
  if (!status.detail().empty()) Line(status.phase() == "starting" ? "waits for" : "because", status.detail(), &text);
  Line("tokens committed",
       absl::StrFormat("%d of %d (%.1f%%)", status.tokens_committed(), status.tokens_budget(),
                       Percent(status.tokens_committed(), status.tokens_budget())),
       &text);
  Line("loss",
       status.loss() > 0 ? absl::StrFormat("%.4f nats/token, mean of the last steps", status.loss())
                         : "no step was reported yet",
       &text);
  Line("tokens per second", absl::StrFormat("%.0f", status.tokens_per_second()), &text);
  Line("workers computing",
       absl::StrFormat("%.1f%% of their time%s", 100 * status.compute_share(), WaitingText(WaitingShares(status))),
       &text);
  Line("staleness", absl::StrFormat("%.1f versions, mean of the last steps", status.staleness_mean()), &text);
  Line("version", absl::StrCat(status.version()), &text);
  Line("term", absl::StrCat(status.term()), &text);
  Line("records on the disk", absl::StrCat(status.durable_index()), &text);
  std::vector<std::string> refused;
  for (const auto& [verdict, count] : Refused(status)) refused.push_back(absl::StrCat(verdict, " ", count));
  Line("refused", refused.empty() ? "none" : absl::StrJoin(refused, ", "), &text);

  size_t region_width = 6, name_width = 4;
  std::set<std::string> hosts;
  for (const MemberStatus& member : status.members()) {
    region_width = std::max(region_width, member.region().size());
    name_width = std::max(name_width, member.name().size());
    hosts.insert(member.host());
  }
  const bool with_host = hosts.size() > 1;  // Else there is nothing to tell apart.
  const int region = static_cast<int>(region_width), name = static_cast<int>(name_width);
  absl::StrAppend(&text, "\n",
                  absl::StrFormat("  %-*s  %-*s  %-10s  %-11s  %4s  %9s  %9s  %12s  %11s%s\n", region, "region", name,
                                  "name", "role", "state", "life", "heard", "computing", "tokens", "peak memory",
                                  with_host ? "  host" : ""));
  for (const MemberStatus* member : SortedMembers(status)) {
    const bool worker = member->role() == ROLE_WORKER;
    const MemberUsage& usage = member->usage();
    absl::StrAppend(&text, absl::StrFormat("  %-*s  %-*s  %-10s  %-11s  %4d  %9s  %9s  %12s  %8.0f MB%s\n", region,
                                           member->region(), name, member->name(), RoleWord(member->role()),
                                           member->state(), member->incarnation(), Ago(member->heard_seconds_ago()),
                                           worker ? absl::StrFormat("%.1f%%", 100 * ComputeShare(usage)) : "",
                                           worker ? absl::StrCat(usage.tokens_computed()) : "",
                                           static_cast<double>(usage.peak_memory_bytes()) / 1e6,
                                           with_host ? absl::StrCat("  ", member->host()) : ""));
  }
  for (const MemberStatus* member : SortedMembers(status)) {
    if (member->state() == "live" || member->why_gone().empty()) continue;
    absl::StrAppend(&text, "  ", member->name(), " of ", member->region(), ": ", member->why_gone(), "\n");
  }
  return text;
}

Json StatusJson(const StatusReply& status) {
  Json members = Json::array();
  for (const MemberStatus* member : SortedMembers(status)) {
    members.push_back({{"region", member->region()},
                       {"name", member->name()},
                       {"role", RoleWord(member->role())},
                       {"state", member->state()},
                       {"incarnation", member->incarnation()},
                       {"pid", member->pid()},
                       {"host", member->host()},
                       {"heard_seconds_ago", member->heard_seconds_ago()},
                       {"why_gone", member->why_gone()},
                       {"compute_share", ComputeShare(member->usage())},
                       {"tokens_computed", member->usage().tokens_computed()},
                       {"peak_memory_bytes", member->usage().peak_memory_bytes()}});
  }
  Json refused = Json::object();
  for (const auto& [verdict, count] : Refused(status)) refused[verdict] = count;
  return {{"run", status.run()},
          {"phase", status.phase()},
          {"detail", status.detail()},
          {"seconds", status.seconds()},
          {"tokens_budget", status.tokens_budget()},
          {"tokens_committed", status.tokens_committed()},
          {"tokens_computed", status.tokens_computed()},
          {"version", status.version()},
          {"loss", status.loss()},
          {"tokens_per_second", status.tokens_per_second()},
          {"compute_share", status.compute_share()},
          {"waiting", WaitingShares(status)},
          {"staleness_mean", status.staleness_mean()},
          {"term", status.term()},
          {"durable_index", status.durable_index()},
          {"storage_trouble", status.storage_trouble()},
          {"refused", refused},
          {"members", members}};
}

bool ReportCompleted(const Json& report) {
  const Json& completed = At(report, "completed");
  return completed.is_boolean() && completed.get<bool>();
}

bool WasStopped(const Json& report) { return Words(report, "failure") == kStoppedBySignal; }

std::string ReportRun(const Json& report) { return Words(report, "run"); }

std::string ReportSummary(const Json& report) {
  std::string text =
      absl::StrFormat("%s: %s\n", Words(report, "job"),
                      ReportCompleted(report) ? "the token budget is committed" : Words(report, "failure"));
  Line("tokens committed",
       absl::StrFormat("%d in %.1f s (%.0f tokens/s)", Count(report, "tokens_committed"),
                       Number(report, "wall_seconds"), Number(report, "tokens_per_second")),
       &text);
  if (const int64_t lost = Count(At(At(report, "ledger"), "all"), "tokens_not_used"); lost > 0 && WasStopped(report)) {
    Line("not used", absl::StrFormat("%d tokens that workers had trained on are in no version", lost), &text);
  }
  if (At(report, "validation_loss_final").is_number()) {
    const bool of_text = At(report, "validation_loss_unigram").is_number();
    Line("validation loss",
         absl::StrFormat(
             "%.4f nats/token (began at %.4f%s)", Number(report, "validation_loss_final"),
             Number(report, "validation_loss_initial"),
             of_text ? absl::StrFormat("; unigram model %.4f", Number(report, "validation_loss_unigram")) : ""),
         &text);
  }
  const Json& workers = At(At(report, "compute"), "all");
  std::map<std::string, double> waiting;
  for (const auto& [reason, seconds] : At(workers, "waiting_seconds").items()) {
    if (seconds.is_number()) waiting[reason] = seconds.get<double>();
  }
  Line("workers computing",
       absl::StrFormat("%.1f%% of their time%s", 100 * Number(report, "compute_share"),
                       WaitingText(Shares(std::move(waiting), Number(workers, "wall_seconds")))),
       &text);
  const Json& ranges = At(report, "ranges");
  const int64_t left = Count(ranges, "left");
  Line("data ranges",
       absl::StrFormat("%d, committed once %d, more than once %d, lost %d%s", Count(ranges, "total"),
                       Count(ranges, "committed_once"), Count(ranges, "committed_more_than_once"),
                       Count(ranges, "lost"), left > 0 ? absl::StrCat(", left ", left) : ""),
       &text);
  const Json& restarts = At(report, "restarts");
  if (Count(restarts, "total") > 0) {
    std::vector<std::string> processes;
    for (const auto& [process, count] : At(restarts, "by_process").items()) {
      if (count.is_number()) processes.push_back(absl::StrCat(process, " ", count.get<int64_t>()));
    }
    Line("started again", absl::StrFormat("%d times (%s)", Count(restarts, "total"), absl::StrJoin(processes, ", ")),
         &text);
  }
  for (const auto& [region, link] : At(report, "wan").items()) {
    absl::StrAppend(
        &text, absl::StrFormat("  link %-15s round trip p50 %.0f ms, p99 %.0f ms; payload up %.1f MB, down %.1f MB\n",
                               region, Number(link, "round_trip_ms_p50"), Number(link, "round_trip_ms_p99"),
                               Number(link, "payload_bytes_up") / 1e6, Number(link, "payload_bytes_down") / 1e6));
  }
  return text;
}

std::string ReportSummary(const Json& report, const std::string& run_dir) {
  return absl::StrCat(ReportSummary(report), "report: ", run_dir, "/report.json\n");
}

std::string JsonText(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

}  // namespace wukong
