#include "launch/experiment_report.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "launch/subprocess.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"

namespace wukong {
namespace {

std::string Number(const std::optional<double>& value) { return value ? absl::StrFormat("%.6g", *value) : ""; }

std::string FaultsCsv(const ExperimentReport& report) {
  std::string text = "number,fault,target,begin_s,end_s,detected_s,back_s\n";
  for (const ExperimentReport::FaultSpan& span : report.faults) {
    absl::StrAppend(&text, span.number, ",", span.fault, ",", span.target, ",", Number(span.begin), ",",
                    Number(span.end), ",", Number(span.detected), ",", Number(span.back), "\n");
  }
  return text;
}

std::string ProgressCsv(const ExperimentReport& report) {
  std::string text = "seconds,samples_committed,loss\n";
  for (const ExperimentReport::Point& point : report.progress) {
    absl::StrAppend(&text, Number(point.seconds), ",", point.samples, ",", Number(point.loss), "\n");
  }
  return text;
}

// Gnuplot's strings in single quotes; its enhanced text is off.
std::string Quoted(const std::string& text) { return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "''"}}), "'"); }

std::string PlotScript(const ExperimentReport& report) {
  bool has_loss = false;
  for (const auto& point : report.progress) has_loss = has_loss || point.loss.has_value();
  std::string text = absl::StrCat(
      "# Run by: gnuplot plot.gp, in this folder.\n"
      "set terminal svg size 900,500 noenhanced background rgb 'white'\nset output 'plot.svg'\n"
      "set datafile separator ','\nset key top left\nset grid\nset xlabel 'seconds'\nset ylabel 'samples committed'\n",
      "set title ", Quoted(report.name), "\n");
  if (has_loss) absl::StrAppend(&text, "set y2label 'loss'\nset y2tics\nset ytics nomirror\n");
  // What lasts is a band, what happens at once is a line.
  int object = 0;
  for (const ExperimentReport::FaultSpan& span : report.faults) {
    ++object;
    if (span.end.has_value()) {
      absl::StrAppend(&text, absl::StrFormat("set object %d rectangle from first %.6g, graph 0 to first %.6g, graph 1 "
                                             "fillcolor rgb '#f4c7c3' fillstyle solid 0.4 noborder behind\n",
                                             object, span.begin, *span.end));
    } else {
      absl::StrAppend(&text, absl::StrFormat("set arrow %d from first %.6g, graph 0 to first %.6g, graph 1 nohead "
                                             "linecolor rgb '#d93025' dashtype 2\n",
                                             object, span.begin, span.begin));
    }
    const bool labelled = &span != &report.faults.front() && (&span)[-1].number == span.number &&
                          (&span)[-1].begin == span.begin;  // One fault, several targets.
    if (report.faults.size() <= 12 && !labelled) {
      absl::StrAppend(&text, "set label ", object, " ", Quoted(absl::StrCat(span.fault, " ", span.target)),
                      absl::StrFormat(" at first %.6g, graph 0.02 rotate by 90 font ',9' front\n", span.begin));
    }
  }
  absl::StrAppend(&text,
                  "plot 'progress.csv' using 1:2 skip 1 with steps linewidth 2 linecolor rgb '#1a73e8' "
                  "title 'samples committed'");
  if (has_loss) {
    absl::StrAppend(&text,
                    ", '' using 1:3 skip 1 axes x1y2 with lines linewidth 2 linecolor rgb '#188038' title 'loss'");
  }
  return text + "\n";
}

std::string FindGnuplot() {
  for (const char* path : {"/usr/bin/gnuplot", "/usr/local/bin/gnuplot"}) {
    std::error_code error;
    if (std::filesystem::exists(path, error)) return path;
  }
  return "";
}

}  // namespace

std::string OwnBinarySha256() {
  const absl::StatusOr<std::string> binary = ReadFile("/proc/self/exe");
  return binary.ok() ? Sha256Hex(*binary) : "";
}

absl::Status WriteExperimentReport(const std::string& folder, const ExperimentReport& report, std::string* note) {
  absl::Status status = MakeDirectories(folder);
  status.Update(WriteFileAtomic(folder + "/scenario.yaml", report.scenario_yaml));
  status.Update(WriteFileAtomic(folder + "/result.json", report.result.dump(2) + "\n"));
  status.Update(WriteFileAtomic(folder + "/faults.csv", FaultsCsv(report)));
  status.Update(WriteFileAtomic(folder + "/progress.csv", ProgressCsv(report)));
  status.Update(WriteFileAtomic(folder + "/plot.gp", PlotScript(report)));
  if (!status.ok()) return status;
  const std::string gnuplot = FindGnuplot();
  if (gnuplot.empty()) {
    *note = absl::StrCat("there is no gnuplot (Debian: gnuplot-nox), so no plot.svg; later: cd ", folder,
                         " && gnuplot plot.gp");
    return absl::OkStatus();
  }
  absl::StatusOr<Subprocess> child =
      Subprocess::Start({gnuplot, "-e", absl::StrCat("cd ", Quoted(folder)), "plot.gp"}, folder + "/plot.log");
  if (!child.ok()) return child.status();
  std::optional<int> code;
  while (!(code = child->Poll()).has_value()) absl::SleepFor(absl::Milliseconds(5));
  std::error_code error;
  if (*code != 0) return absl::InternalError(absl::StrCat("gnuplot failed: see ", folder, "/plot.log"));
  std::filesystem::remove(folder + "/plot.log", error);
  return absl::OkStatus();
}

}  // namespace wukong
